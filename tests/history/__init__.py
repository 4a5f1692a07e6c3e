"""Histories of real processes under faults, checked in the ledger's own order.

Clients record every question and answer with the time of one monotonic clock; processes are killed,
suspended, cut off and lied to about the time meanwhile. `checker` then replays what was heard in
the order that the shards' logs give, and names every promise that was broken.
"""
