"""The coordinator: two-phase commit for transfers and groups between shards, batched.

Read `two_phase` (pure: what a transaction waits for, and what follows from each answer), then
`transactions` (packed requests taken apart), `lanes` (few, large calls), `rounds` (all transactions
in progress), `recovery` (what others left behind) and `service` (the handlers). `__main__` puts
them together.
"""
