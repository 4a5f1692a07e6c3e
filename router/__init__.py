"""The router: what game servers call. It takes batches apart by shard and forwards them.

Read `routing` (pure: what goes where, and what comes back), then `scatter` (all shards at once),
`lanes` (few, large calls), `shards` (who serves a shard now, and when to ask again), and `service`
and `admin` (the handlers). `__main__` puts them together.
"""
