"""What operators see: currencies, the cluster, its processes and its books."""

from dataclasses import dataclass
from datetime import datetime

from doubloon.accounts import Account
from doubloon.times import as_datetime


@dataclass(frozen=True, slots=True)
class Currency:
    """A registered currency."""

    code: str
    """1 … 16 characters: A-Z, 0-9 and _, a letter first."""
    number: int
    """The small number the ledger stores, 1 … 65,535."""
    scale: int
    """How many decimals a major unit has, 0 … 18."""
    name: str
    """For people."""


@dataclass(frozen=True, slots=True)
class AccountChange:
    """The answer to a change of an account's status."""

    account: Account
    """As it now is."""
    repeat: bool
    """True when it had that status already; then nothing was recorded."""


@dataclass(frozen=True, slots=True)
class MemberStatus:
    """A process that is registered as a member of the cluster."""

    role: str
    """`shard`, `router` or `coordinator`."""
    id: str
    """Unique within its role."""
    address: str
    """host:port."""
    version: str
    """The version of Doubloon it runs."""
    started_us: int
    """When it started, microseconds."""

    @property
    def started(self) -> datetime | None:
        """`started_us` as an aware datetime."""
        return as_datetime(self.started_us)


@dataclass(frozen=True, slots=True)
class ShardStatus:
    """One shard, as its node sees it; counts are since its process began unless said otherwise."""

    shard_id: int
    """1 … 65,535."""
    epoch: int
    """The epoch that owns the shard's log."""
    primary: str
    """The member that serves it; "" = none."""
    reachable: bool
    """False when its node did not answer; then all that follows is 0."""
    slots: int
    """How many of the 4,096 slots it has."""
    durable_block: int
    """The number of the latest durable block, from 1."""
    durable_sequence: int
    """The sequence number of the latest durable record, from 1."""
    checkpoint_block: int
    """The block that the latest checkpoint is true up to; 0 = no checkpoint yet."""
    records_since_checkpoint: int
    """Records that a restart would replay."""
    transfers_completed: int
    """Transfers answered COMPLETED for the first time."""
    transfers_refused: int
    """Transfers answered REFUSED for the first time."""
    transfers_repeated: int
    """Transfers answered as repeats."""
    log_syncs: int
    """Syncs of the log."""
    log_bytes: int
    """Bytes of the log's data file, ever."""
    state_bytes: int
    """Bytes of the state's data file, ever."""
    accounts_cached: int
    """Accounts in memory."""
    memory_bytes: int
    """Anonymous resident memory, bytes."""
    longest_turn_us: int
    """The longest turn of the event loop, microseconds."""
    clock_us: int
    """The clock of the shard, microseconds."""
    space_exhausted: bool
    """True when the node refuses new transfers for lack of space."""


@dataclass(frozen=True, slots=True)
class ClusterStatus:
    """Who serves what, and how each shard node is doing."""

    topology_version: int
    """The topology's version; 0 = none yet."""
    shards: tuple[ShardStatus, ...]
    """Every shard of the topology, in order of id."""
    members: tuple[MemberStatus, ...]
    """Every registered member, ordered by role and id."""
    etcd_connected: bool
    """Whether the answering process is in touch with etcd."""


@dataclass(frozen=True, slots=True)
class HealthCheck:
    """One thing that was checked in a process."""

    name: str
    """Such as `etcd`, `topology` or `event_loop`."""
    healthy: bool
    """Whether it is as it should be."""
    detail: str
    """For people."""


@dataclass(frozen=True, slots=True)
class ProcessHealth:
    """How the answering process itself is doing."""

    role: str
    """`router`, `shard` or `coordinator`."""
    id: str
    """Unique within its role."""
    version: str
    """The version of Doubloon it runs."""
    started_us: int
    """When it started, microseconds."""
    longest_turn_us: int
    """The longest turn of its event loop since it started, microseconds."""
    memory_bytes: int
    """Anonymous resident memory, bytes."""
    checks: tuple[HealthCheck, ...]
    """What was checked just now."""

    @property
    def healthy(self) -> bool:
        """Whether every check was as it should be."""
        return all(check.healthy for check in self.checks)


@dataclass(frozen=True, slots=True)
class ShardBooks:
    """The books of one currency on one shard."""

    shard_id: int
    """The shard."""
    currency: str
    """The currency's code."""
    accounts: int
    """The number of accounts that hold or held it."""
    positive_minor: int
    """The sum of all balances above 0, minor units; may pass 64 bits."""
    negative_minor: int
    """The sum of all balances below 0, minor units; may pass 64 bits."""
    balanced: bool
    """Whether both and the shard's clearing positions sum to 0."""


@dataclass(frozen=True, slots=True)
class ConservationReport:
    """The books of the cluster: promise 1, conservation."""

    books: tuple[ShardBooks, ...]
    """Ordered by shard and currency number."""
    balanced: bool
    """True when all of them balance."""
