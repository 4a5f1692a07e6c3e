"""A real shard node's log and state under faults: kills, failed writes, power cuts, damage.

`driver` is a process that runs the real engine, its child included, on a folder, through the
seeded commands of `workload`, and reports what was acknowledged to a file outside. `faults` ends
it, or makes the disk fail it, at a chosen system call; `disks` cuts the power under it; `damage`
changes bytes behind its back. After each, `verdict` opens the folder as a start does and holds what
is there against what was acknowledged. `sweeps` and `power` are the long runs
(`python -m tests.crash`), the tests beside them are a seeded sample. `mutants` are wrong on
purpose, to show that it would be noticed.
"""
