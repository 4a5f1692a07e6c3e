SELECT transfer_random_array(:size, :accounts);
