"""What every server role shares: time, topology, membership in etcd, gRPC settings, logs, start-up.

Rooms import this one; it imports none of them. `topology` and the clocks are pure; `membership` is
the seam behind which etcd stands (`etcd_membership` over `etcd`), with an in-memory twin.
"""
