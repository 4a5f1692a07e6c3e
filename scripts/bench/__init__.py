"""The benchmark suite: `make bench`, or `python -m scripts.bench --only NAME,NAME`.

How fast a cluster of real processes on this machine is, what it costs, and how that compares with
the bars that the project sets itself, with floors (what the disk, LMDB and gRPC allow by
themselves) and with peers (PostgreSQL and Redis doing the same work), all in the same run.
`docs/performance.md` says what each figure means.

    results.py   what a case gives: figures beside their bars, and what they cost
    load.py      accounts, pairs, ids and requests, made before the clock starts
    rig.py       a cluster with funded accounts, and what its processes used
    drive.py     closed loops: so many calls in flight until the work is done
    http2.py     unary calls at a few microseconds each, on plain sockets
    cases/       one file for each kind of case
    peers/       PostgreSQL, Redis
    report.py    tables and Markdown; pictures.py: the picture
    fleet.py     what a fleet for so many transfers a second would need
"""
