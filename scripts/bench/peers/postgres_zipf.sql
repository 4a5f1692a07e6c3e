\set source random_zipfian(1, :accounts, 1.1)
\set drawn random_zipfian(1, :accounts - 1, 1.1)
\set destination CASE WHEN :drawn >= :source THEN :drawn + 1 ELSE :drawn END
\set amount random(1, 100)
SELECT transfer(time_ordered_id(), :source, :destination, :amount);
