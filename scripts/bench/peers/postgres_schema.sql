-- A wallet in PostgreSQL as a careful engineer would write it: accounts with a floor, transfers
-- with a unique request id, one entry per leg with the balance after it, hourly sums, all in one
-- transaction; one round trip for a transfer, row locks always in the order of account ids.

CREATE TABLE accounts (
    account_id bigint PRIMARY KEY,
    balance_minor bigint NOT NULL CHECK (balance_minor >= 0),
    entries bigint NOT NULL DEFAULT 0
) WITH (fillfactor = 60); -- room for updates in place

CREATE TABLE transfers (
    transfer_id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    request_id uuid NOT NULL UNIQUE,
    source_id bigint NOT NULL,
    destination_id bigint NOT NULL,
    amount_minor bigint NOT NULL CHECK (amount_minor > 0),
    made_at timestamptz NOT NULL DEFAULT now()
);

CREATE TABLE entries (
    account_id bigint NOT NULL,
    entry bigint NOT NULL,
    transfer_id bigint NOT NULL,
    amount_minor bigint NOT NULL,
    balance_after_minor bigint NOT NULL,
    made_at timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (account_id, entry)
);

CREATE TABLE hours (
    account_id bigint NOT NULL,
    hour timestamptz NOT NULL,
    incoming_minor bigint NOT NULL,
    outgoing_minor bigint NOT NULL,
    closing_minor bigint NOT NULL,
    PRIMARY KEY (account_id, hour)
) WITH (fillfactor = 60);

-- A time-ordered UUID, as Doubloon's clients make them: random ones would scatter the index.
CREATE FUNCTION time_ordered_id() RETURNS uuid LANGUAGE sql VOLATILE PARALLEL SAFE AS $$
    SELECT (lpad(to_hex((extract(epoch FROM clock_timestamp()) * 1000)::bigint), 12, '0')
            || '7' || substr(replace(gen_random_uuid()::text, '-', ''), 14))::uuid
$$;

-- One transfer: 0 = made now, 1 = made before (a retry). Raises when the money does not suffice or
-- an account does not exist, which takes everything back.
CREATE FUNCTION transfer(request uuid, source bigint, destination bigint, amount bigint)
RETURNS int LANGUAGE plpgsql AS $$
DECLARE
    made bigint;
    source_balance bigint; source_entry bigint;
    destination_balance bigint; destination_entry bigint;
    this_hour timestamptz := date_trunc('hour', now());
BEGIN
    INSERT INTO transfers (request_id, source_id, destination_id, amount_minor)
        VALUES (request, source, destination, amount)
        ON CONFLICT (request_id) DO NOTHING RETURNING transfer_id INTO made;
    IF made IS NULL THEN RETURN 1; END IF;
    IF source < destination THEN
        UPDATE accounts SET balance_minor = balance_minor - amount, entries = entries + 1
            WHERE account_id = source RETURNING balance_minor, entries
            INTO source_balance, source_entry;
        UPDATE accounts SET balance_minor = balance_minor + amount, entries = entries + 1
            WHERE account_id = destination RETURNING balance_minor, entries
            INTO destination_balance, destination_entry;
    ELSE
        UPDATE accounts SET balance_minor = balance_minor + amount, entries = entries + 1
            WHERE account_id = destination RETURNING balance_minor, entries
            INTO destination_balance, destination_entry;
        UPDATE accounts SET balance_minor = balance_minor - amount, entries = entries + 1
            WHERE account_id = source RETURNING balance_minor, entries
            INTO source_balance, source_entry;
    END IF;
    IF source = destination OR source_entry IS NULL OR destination_entry IS NULL THEN
        RAISE EXCEPTION 'no such accounts';
    END IF;
    INSERT INTO entries (account_id, entry, transfer_id, amount_minor, balance_after_minor) VALUES
        (source, source_entry, made, -amount, source_balance),
        (destination, destination_entry, made, amount, destination_balance);
    INSERT INTO hours AS h (account_id, hour, incoming_minor, outgoing_minor, closing_minor)
        VALUES (source, this_hour, 0, amount, source_balance),
               (destination, this_hour, amount, 0, destination_balance)
        ON CONFLICT (account_id, hour) DO UPDATE SET
            incoming_minor = h.incoming_minor + excluded.incoming_minor,
            outgoing_minor = h.outgoing_minor + excluded.outgoing_minor,
            closing_minor = excluded.closing_minor;
    RETURN 0;
END $$;

-- A whole array in a handful of statements, all or nothing: raises when any running balance would
-- go below zero (whoever calls it then falls back to single transfers). Returns how many were new.
CREATE FUNCTION transfer_array(
    requests uuid[], sources bigint[], destinations bigint[], amounts bigint[]
) RETURNS int LANGUAGE plpgsql AS $$
DECLARE
    made int; lowest bigint;
    this_hour timestamptz := date_trunc('hour', now());
BEGIN
    PERFORM 1 FROM accounts WHERE account_id = ANY (sources || destinations)
        ORDER BY account_id FOR UPDATE;
    WITH asked AS (
        SELECT * FROM unnest(requests, sources, destinations, amounts) WITH ORDINALITY
            AS u (request_id, source_id, destination_id, amount_minor, place)
    ), fresh AS (
        INSERT INTO transfers (request_id, source_id, destination_id, amount_minor)
            SELECT request_id, source_id, destination_id, amount_minor FROM asked ORDER BY place
            ON CONFLICT (request_id) DO NOTHING
            RETURNING transfer_id, source_id, destination_id, amount_minor
    ), legs AS (
        SELECT transfer_id, source_id AS account_id, -amount_minor AS amount_minor FROM fresh
        UNION ALL SELECT transfer_id, destination_id, amount_minor FROM fresh
    ), posted AS (
        INSERT INTO entries (account_id, entry, transfer_id, amount_minor, balance_after_minor)
            SELECT l.account_id, a.entries + row_number() OVER w, l.transfer_id, l.amount_minor,
                   a.balance_minor + sum(l.amount_minor) OVER w
            FROM legs l JOIN accounts a USING (account_id)
            WINDOW w AS (PARTITION BY l.account_id ORDER BY l.transfer_id)
            RETURNING account_id, amount_minor, balance_after_minor
    ), sums AS (
        SELECT account_id, count(*) AS entries, sum(amount_minor)::bigint AS net,
               coalesce(sum(amount_minor) FILTER (WHERE amount_minor > 0), 0)::bigint AS incoming,
               coalesce(-sum(amount_minor) FILTER (WHERE amount_minor < 0), 0)::bigint AS outgoing,
               min(balance_after_minor) AS lowest
        FROM posted GROUP BY account_id
    ), moved AS (
        UPDATE accounts a SET balance_minor = a.balance_minor + s.net,
                              entries = a.entries + s.entries
            FROM sums s WHERE a.account_id = s.account_id RETURNING a.account_id, a.balance_minor
    ), hourly AS (
        INSERT INTO hours AS h (account_id, hour, incoming_minor, outgoing_minor, closing_minor)
            SELECT s.account_id, this_hour, s.incoming, s.outgoing, m.balance_minor
            FROM sums s JOIN moved m USING (account_id)
            ON CONFLICT (account_id, hour) DO UPDATE SET
                incoming_minor = h.incoming_minor + excluded.incoming_minor,
                outgoing_minor = h.outgoing_minor + excluded.outgoing_minor,
                closing_minor = excluded.closing_minor
    )
    SELECT coalesce(sum(s.entries), 0) / 2, min(s.lowest) INTO made, lowest FROM sums s;
    IF lowest < 0 THEN RAISE EXCEPTION 'a balance would go below zero'; END IF;
    RETURN made;
END $$;

-- A call of `transfer_array` with so many random transfers; making them costs the server a few
-- percent of what executing them does, which is the cheapest way to have pgbench send arrays.
CREATE FUNCTION transfer_random_array(size int, accounts_max bigint)
RETURNS int LANGUAGE sql VOLATILE AS $$
    SELECT transfer_array(array_agg(request), array_agg(source),
                          array_agg(1 + (source + step - 1) % accounts_max), array_agg(amount))
    FROM (SELECT time_ordered_id() AS request,
                 1 + floor(random() * accounts_max)::bigint AS source,
                 1 + floor(random() * (accounts_max - 1))::bigint AS step,
                 1 + floor(random() * 100)::bigint AS amount
          FROM generate_series(1, size)) AS drawn
$$;

CREATE FUNCTION open_accounts(size int) RETURNS void LANGUAGE sql AS $$
    INSERT INTO accounts (account_id, balance_minor)
        SELECT g, 1000000000000 FROM generate_series(1, size) g
$$;

-- Whether the books are right: what the benchmark asks when it is done.
CREATE VIEW books AS SELECT
    (SELECT sum(balance_minor) FROM accounts)
        = (SELECT count(*) FROM accounts) * 1000000000000 AS conserved,
    (SELECT count(*) FROM transfers) * 2 = (SELECT count(*) FROM entries) AS two_entries_each,
    (SELECT sum(entries) FROM accounts) = (SELECT count(*) FROM entries) AS entries_counted,
    (SELECT sum(incoming_minor) = sum(outgoing_minor) FROM hours) AS hours_balanced;
