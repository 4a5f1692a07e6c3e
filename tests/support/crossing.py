"""A shard that takes part in transactions, driven by hand: see `ledgers.Rig`.

An account's number tells its shard: 8,001 lives on shard 8, and what is below 1,000 lives `HERE`.
"""

import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

from cluster.packed import BODY_BYTES, Fate, Outcome, Vote
from cluster.refusals import RefusalReason
from shard_node.ledger import OpenStatus
from shard_node.legs import Member
from shard_node.records import RecordKind
from shard_node.transactions import Header, Request
from tests.support.ledgers import BANK, IDENTITY, Rig, transfer_id
from tests.support.naive_ledger import PLAYER, Ask

HERE = IDENTITY.shard_id
SECOND_US = 1_000_000
LIFE_US = 5 * SECOND_US
"""What coordinators give a transaction."""

# The formats of `cluster.packed`, spelled here once more.
BODY = struct.Struct("<16s2Qq2Q2H3Bx")
MEMBER = struct.Struct("<64s2H4x")
HEADER = struct.Struct("<16sqQHB5x")
VOTE = struct.Struct("<3B5x")
ANSWER = struct.Struct("<7Bx3q16s")
RESOLUTION = struct.Struct("<B7xq")
RESULT = struct.Struct("<6B2x2q")

# Two players here, and accounts of two other shards.
ANN, BOB = 10, 20
OTHER, THIRD = 8_001, 9_001
FUNDS = 100

YES = (Vote.YES, 0, 0)
NOBODY = bytes(16)


def shard_of(account_id: int) -> int:
    """The shard on which an account lives."""
    return account_id // 1_000 or HERE


class Move(NamedTuple):
    """One transfer, minor units."""

    source: int
    destination: int
    amount_minor: int
    currency: int = 1
    metadata: bytes = b""
    reference: int = 0
    type: int = 1
    import_us: int = 0


def pack_bodies(transfer_id: bytes, moves: Sequence[Move], *, is_group: bool) -> list[bytes]:
    """The bodies of a group, or of a plain transfer."""
    return [
        BODY.pack(
            transfer_id,
            *(move.source, move.destination, move.amount_minor, move.reference),
            *(move.import_us, move.currency, len(move.metadata), move.type),
            *(index, len(moves) * is_group),
        )
        for index, move in enumerate(moves)
    ]


@dataclass(frozen=True)
class Attempt:
    """A transaction: one attempt at a transfer, or at a group.

    Attributes:
        number: in its id.
        deadline_us: microseconds.
        moves: of the group; just one for a plain transfer.
        key: the number in the transfer's id, or the group's.
        is_group: whether it is a group, be it of one.
    """

    number: int
    deadline_us: int
    moves: tuple[Move, ...]
    key: int
    is_group: bool = False

    @property
    def transaction_id(self) -> bytes:
        return b"txn:" + self.number.to_bytes(12, "big")

    @property
    def transfer_id(self) -> bytes:
        return self.key.to_bytes(16, "big")

    @property
    def home(self) -> int:
        return shard_of(self.moves[0].source)

    def again(self, number: int, deadline_us: int = 0) -> "Attempt":
        """Another attempt at the same."""
        return replace(self, number=number, deadline_us=deadline_us or self.deadline_us)

    def with_move(self, index: int, **fields: object) -> "Attempt":
        """The same but for some fields of a transfer."""
        moves = list(self.moves)
        moves[index] = moves[index]._replace(**fields)  # type: ignore[arg-type]  # named by the test
        return replace(self, moves=tuple(moves))

    def packed(self, shard: int = 0) -> tuple[bytes, bytes, bytes]:
        """Header, members and metadata as told to a participant, or (0) to the home."""
        bodies = pack_bodies(self.transfer_id, self.moves, is_group=self.is_group)
        told = [
            (MEMBER.pack(body, *shards), move.metadata)
            for body, move in zip(bodies, self.moves, strict=True)
            for shards in [(shard_of(move.source), shard_of(move.destination))]
            if not shard or shard in shards
        ]
        source = self.moves[0].source
        header = HEADER.pack(self.transaction_id, self.deadline_us, source, self.home, len(told))
        return header, b"".join(one for one, _ in told), b"".join(one for _, one in told)

    def request(self, shard: int = 0) -> Request:
        """As `packed`, for the ledger."""
        header, members, metadata = self.packed(shard)
        return Request(Header.unpack(header), members, metadata)


class Answer(NamedTuple):
    """The home's answer, its fields in the order of the packed form."""

    fate: int
    outcome: int
    reason: int = 0
    differing: int = 0
    repeat: int = 0
    refused_at: int = 0
    unposted: int = 0
    time_us: int = 0
    balance_minor: int = 0
    decided_us: int = 0
    transaction_id: bytes = NOBODY


class GroupResult(NamedTuple):
    """A group's result, its fields in the order of the packed form."""

    status: int
    reason: int = 0
    differing: int = 0
    repeat: int = 0
    refused_at: int = 0
    indefinite: int = 0
    time_us: int = 0
    balance_minor: int = 0


class Picture(NamedTuple):
    """All of a shard that can change, to compare it with itself."""

    sequence: int
    accounts: dict[int, tuple[int, int, dict[int, tuple[int, int, int]]]]
    positions: dict[tuple[int, int], int]
    prepared: dict[bytes, object]
    decided: dict[bytes, object]


class CrossingRig(Rig):
    """A `Rig` with the commands of transactions; it checks conservation after every block.

    Attributes:
        opened: every account that was ever opened.
    """

    def __init__(self, accounts_max: int = 1_000) -> None:
        self.opened: set[int] = set()
        super().__init__(accounts_max)

    def open(
        self, account_id: int, kind: int = PLAYER, floor_minor: int = 0, cap_minor: int = 0
    ) -> tuple[OpenStatus, str]:
        self.opened.add(account_id)
        return super().open(account_id, kind, floor_minor, cap_minor)

    def seal(self) -> None:
        super().seal()
        self.check_conservation()

    def attempt(self, number: int, *moves: Move, key: int = 0, is_group: bool = False) -> Attempt:
        """A transaction that begins now; its number is its key's, unless one is given."""
        return Attempt(number, self.stamp_us + LIFE_US, moves, key or number, is_group)

    def prepare(self, attempt: Attempt, *, room: bool = True) -> tuple[int, int, int]:
        self.begin_block()
        packed = self.ledger.participant.prepare(attempt.request(HERE), room=room)
        vote, reason, index = VOTE.unpack(packed)
        return vote, reason, index

    def commit_home(self, attempt: Attempt, vote: tuple[int, int, int] = YES) -> Answer:
        self.begin_block()
        return Answer(*ANSWER.unpack(self.ledger.participant.commit_home(attempt.request(), vote)))

    def commit_prepared(self, attempt: Attempt, decided_us: int = 0) -> None:
        decided_us = decided_us or self.stamp_us
        self.begin_block()
        self.ledger.participant.commit_prepared(attempt.transaction_id, decided_us)

    def abort(self, attempt: Attempt) -> None:
        self.begin_block()
        self.ledger.participant.abort(attempt.transaction_id, attempt.deadline_us)

    def resolve(self, attempt: Attempt) -> tuple[int, int]:
        self.begin_block()
        transaction = attempt.transaction_id, attempt.deadline_us
        fate, decided_us = RESOLUTION.unpack(self.ledger.participant.resolve(*transaction))
        return fate, decided_us

    def finish(self, *attempts: Attempt) -> None:
        self.begin_block()
        self.ledger.participant.finish([each.transaction_id for each in attempts])

    def group(self, key: int, *moves: Move) -> GroupResult:
        """Runs a group whose accounts are all here."""
        self.begin_block()
        bodies = pack_bodies(key.to_bytes(16, "big"), moves, is_group=True)
        members = [
            Member(body, HERE, HERE, move.metadata)
            for body, move in zip(bodies, moves, strict=True)
        ]
        return GroupResult(*RESULT.unpack(self.ledger.groups.execute(members)))

    def let_time_pass(self, us: int) -> None:
        """Ends the block, and the clock goes on."""
        self.seal()
        self.wall.advance(us)

    # --- looking --------------------------------------------------------------------------------

    def kinds_after(self, sequence: int) -> list[RecordKind]:
        """The kinds of the records behind one."""
        return [
            RecordKind(self.ledger.read_transfer(each)[0][BODY_BYTES])
            for each in range(sequence + 1, self.ledger.sequence + 1)
        ]

    def reserved(self, account_id: int, currency: int = 1) -> tuple[int, int]:
        """What is reserved of a balance: (outgoing, incoming)."""
        balance = self.account(account_id).balances.get(currency)
        return (balance.reserved_outgoing, balance.reserved_incoming) if balance else (0, 0)

    def picture(self) -> Picture:
        """All of it, as it is now."""
        accounts = {}
        for account_id in sorted(self.opened):
            if account := self.ledger.memory.account(account_id):
                balances = {
                    currency: (each.minor, each.reserved_outgoing, each.reserved_incoming)
                    for currency, each in account.balances.items()
                    if each.first_sequence or each.reserved_outgoing or each.reserved_incoming
                }
                accounts[account_id] = account.status, account.pins, balances
        table = self.ledger.transactions
        return Picture(
            self.ledger.sequence,
            accounts,
            dict(self.ledger.clearing.positions),
            dict(table.prepared),
            dict(table.decided),
        )

    def check_conservation(self) -> None:
        """Promise 1: balances and clearing sum to zero, per currency."""
        sums: dict[int, int] = {}
        for account_id in self.opened:
            account = self.ledger.memory.account(account_id)
            for currency, balance in account.balances.items() if account else ():
                sums[currency] = sums.get(currency, 0) + balance.minor
        for (_, currency), minor in self.ledger.clearing.positions.items():
            sums[currency] = sums.get(currency, 0) + minor
        assert not any(sums.values()), f"conservation: {sums}"


def no(reason: RefusalReason, index: int = 0) -> tuple[int, int, int]:
    """A participant's refusal."""
    return Vote.NO, reason, index


COMMITTED = (Fate.COMMITTED, Outcome.COMMITTED)
LOST = (Fate.ABORTED, Outcome.COMMITTED)
REFUSED = (Fate.ABORTED, Outcome.REFUSED)
NOTHING = (Fate.ABORTED, Outcome.NONE)


Act = Callable[[CrossingRig, Attempt], object]


def two_players() -> CrossingRig:
    """A shard with two players, Ann with `FUNDS`."""
    rig = CrossingRig()
    rig.open_bank()
    rig.open(ANN)
    rig.open(BOB, cap_minor=FUNDS)
    rig.transfer(Ask(transfer_id(1), BANK, ANN, FUNDS))
    return rig


def replay(rig: CrossingRig, _: Attempt) -> None:
    rig.seal()
    rig.sync()
    rig.crash()


def restart_from_checkpoint(rig: CrossingRig, _: Attempt) -> None:
    rig.checkpoint()
    rig.crash()


RESTARTS: dict[str, Act] = {
    "running": lambda rig, _: rig.seal(),
    "replayed": replay,
    "checkpointed": restart_from_checkpoint,
}


def decide(rig: CrossingRig, it: Attempt) -> None:
    assert rig.commit_home(it)[:2] == COMMITTED
