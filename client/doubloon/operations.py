"""What operators see: currencies, the cluster, its processes and its books."""

from dataclasses import dataclass
from datetime import datetime

from doubloon.accounts import Account
from doubloon.enums import TransactionState
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
    """`shard_node`, `router` or `coordinator`."""
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
    transactions_prepared: int
    """Transactions prepared here and not decided, as far as this shard knows."""
    transactions_unfinished: int
    """Transactions decided here that some participant may not have posted."""
    oldest_transaction_us: int
    """When the oldest of both began, microseconds; 0 = there is none."""
    scrub_ended_us: int
    """When the last full pass of the scrub ended since the node started; 0 = none has."""
    scrub_checked: int
    """Blocks and rows that the scrub has read in its present pass."""
    scrub_total: int
    """Blocks and rows that there were when that pass began; 0 = there is none."""
    longest_turn_cpu_us: int
    """The most processor time of any turn, microseconds; the longest has waited for the rest."""


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
    """`router`, `shard_node` or `coordinator`."""
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
    longest_turn_cpu_us: int
    """The most processor time that a turn of its event loop took, microseconds."""

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
    clearing_minor: int
    """The sum of the shard's clearing positions with all others, minor units; may pass 64 bits."""


@dataclass(frozen=True, slots=True)
class ConservationReport:
    """The books of the cluster: promise 1, conservation."""

    books: tuple[ShardBooks, ...]
    """Ordered by shard and currency number."""
    balanced: bool
    """True when all of them balance."""


@dataclass(frozen=True, slots=True)
class ShardPairAudit:
    """What two shards owe each other in one currency, at the audit's instant."""

    shard_id: int
    """The lower shard."""
    peer_shard_id: int
    """The higher shard."""
    currency: str
    """The currency's code."""
    position_minor: int
    """What the second owes the first by the first's books, minor units; may pass 64 bits."""
    peer_position_minor: int
    """What the first owes the second by the second's books, minor units; may pass 64 bits."""
    unposted_minor: int
    """Of these sums, what was decided by then and not posted yet, minor units."""
    balanced: bool
    """Whether the two cancel."""
    differing_transaction_ids: tuple[bytes, ...]
    """When they do not: the transactions that only one of the two has; at most 100."""


@dataclass(frozen=True, slots=True)
class AuditReport:
    """Whether the shards' books agree with each other: promise 1 between shards."""

    as_of_us: int
    """The logical time, microseconds."""
    pairs: tuple[ShardPairAudit, ...]
    """Every pair with a position, ordered by shards and currency."""
    in_doubt: int
    """Transactions that were prepared somewhere and not decided by then."""
    balanced: bool
    """True when every pair cancels."""

    @property
    def as_of(self) -> datetime | None:
        """`as_of_us` as an aware datetime."""
        return as_datetime(self.as_of_us)


@dataclass(frozen=True, slots=True)
class TransactionInfo:
    """A transaction in doubt, or decided and not finished, as one shard sees it."""

    transaction_id: bytes
    """16 random bytes."""
    state: TransactionState
    """Where it stands on this shard."""
    shard_id: int
    """The shard that sees it so."""
    home_shard_id: int
    """The shard whose log holds the decision."""
    participant_shard_ids: tuple[int, ...]
    """The other shards."""
    deadline_us: int
    """When it is given up if undecided, microseconds."""
    since_us: int
    """Since when it stands so here, microseconds."""
    decided_us: int
    """When it was decided, microseconds; 0 = not known here."""
    transfer_id: bytes
    """The id of its transfer or group."""
    key_account_id: int
    """The first source account of its key."""
    size: int
    """How many transfers it has."""

    @property
    def since(self) -> datetime | None:
        """`since_us` as an aware datetime."""
        return as_datetime(self.since_us)


@dataclass(frozen=True, slots=True)
class InDoubt:
    """What is in doubt, or decided and not finished, between shards."""

    transactions: tuple[TransactionInfo, ...]
    """One for each transaction and shard, the oldest first."""
    unreachable_shard_ids: tuple[int, ...]
    """The shards that did not answer in time: what they have in doubt is not listed."""

    @property
    def is_nothing(self) -> bool:
        """Whether every shard has answered that it has nothing in doubt."""
        return not self.transactions and not self.unreachable_shard_ids
