"""Shards and coordinators against each other in one process, on virtual time, under a seed.

The cores are the real ones: ledgers on a log and a state in memory, recovered as a start does it,
and the coordinator's transactions. What is simulated is what they run in: `world` (time, order,
messages and their fate), `shards` (when a block is durable, crashes), `coordinators` (calls, time
limits, sweeps), `clients`. `scenario` draws all of it from one seed; `checks` says what must be
true, of every moment and of the end; `mutants` are wrong on purpose, to show that it would be
noticed. `python -m tests.simulation` plays many seeds.
"""
