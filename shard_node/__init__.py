"""The shard node: one shard's ledger, its log, its state, and the answers read from them.

In reading order: `records` (what a log holds), `books` (what memory holds), `ledger` (decides),
`log` and `state` (keep), `committer` (makes durable), `engine` (puts these together), `queries`
(answers), `service` (translates), `__main__` (starts).
"""
