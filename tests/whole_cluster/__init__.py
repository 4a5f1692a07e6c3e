"""A whole cluster in one process, on virtual time, under one seed.

Everything that decides anything is the real code: the SDK, routers with their lanes and pools,
coordinators with their rounds and sweeps, shard nodes from the handlers down to the ledger, with
start-up and recovery. What is simulated lies behind the seams: time and order (`loop`), processes
that crash, hang and come back (`world`), the wire (`network`), etcd (`membership`), log and state
on a disk that forgets what was not synced (`disk`). `nodes` puts processes together as their
`__main__`s do; `clients` are game servers; `faults` does its worst; `oracle` reads every block that
becomes durable and knows what must be true of each answer; `scenario` draws all of it from a seed.
`mutants` are wrong on purpose. `python -m tests.whole_cluster` plays many seeds.
"""
