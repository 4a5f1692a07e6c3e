"""What a driver asks of its engine: seeded streams of commands, the same for whoever looks on.

A driver runs several streams at once, each one command after the other. What a stream asks next
depends on its seed alone, so whoever knows the seed and how many commands of each stream were
answered knows what was asked: all of those, and perhaps the next one.
"""

import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from itertools import count

from cluster.packed import VOTE, Vote
from shard_node.engine import Engine
from shard_node.legs import Member
from tests.support.crossing import HERE, LIFE_US, Attempt, Move, pack_bodies
from tests.support.engines import START_US
from tests.support.ledgers import BANK

STREAMS = 4  # that run at once; stream 0 opens the accounts before them
EPOCH_US = 10**9  # how far the wall clock has moved from one epoch to the next

PLAYERS = range(10, 26)
FROZEN = range(90, 90 + STREAMS + 1)  # each has its status changed by the stream of its place
FOREIGN = (8_001, 8_002, 9_001)
CAP_MINOR = 3_000  # of every fourth player: some payments do not fit
FLOOR_MINOR = -(10**15)
SYSTEM, PLAYER = 2, 1


@dataclass(frozen=True)
class Open:
    """Opens the accounts that all streams use; from the second epoch on a repeat."""

    def specs(self) -> list[tuple[int, int, int, int]]:
        return [
            (BANK, SYSTEM, FLOOR_MINOR, 0),
            *((each, PLAYER, 0, 0 if each % 4 else CAP_MINOR) for each in PLAYERS),
            *((each, PLAYER, 0, 0) for each in FROZEN),
        ]


@dataclass(frozen=True)
class Transfers:
    """A batch: (number, transfer) each."""

    asked: tuple[tuple[int, Move], ...]

    def bodies(self) -> list[bytes]:
        return [pack_bodies(_id(key), [move], is_group=False)[0] for key, move in self.asked]


@dataclass(frozen=True)
class Groups:
    """Groups whose accounts are all here: (number, transfers) each."""

    asked: tuple[tuple[int, tuple[Move, ...]], ...]

    def members(self) -> list[list[Member]]:
        return [
            [
                Member(body, HERE, HERE, move.metadata)
                for body, move in zip(
                    pack_bodies(_id(key), moves, is_group=True), moves, strict=True
                )
            ]
            for key, moves in self.asked
        ]


@dataclass(frozen=True)
class ChangeStatus:
    """Freezes or unfreezes an account."""

    account_id: int
    status: int


@dataclass(frozen=True)
class Prepare:
    """Prepares a transaction whose home is elsewhere."""

    attempt: Attempt


@dataclass(frozen=True)
class End:
    """Ends what was prepared: commits it if it was and is to be, else aborts it."""

    attempt: Attempt
    commit: bool


@dataclass(frozen=True)
class CommitHome:
    """Decides a transaction whose home is here, all participants having said yes."""

    attempt: Attempt


@dataclass(frozen=True)
class Resolve:
    """Asks what became of a transaction that was never decided here, past its deadline."""

    attempt: Attempt


@dataclass(frozen=True)
class Finish:
    """Forgets a decision."""

    attempt: Attempt


@dataclass(frozen=True)
class TakeCheckpoint:
    """Commits a checkpoint."""


Command = (
    Open
    | Transfers
    | Groups
    | ChangeStatus
    | Prepare
    | End
    | CommitHome
    | Resolve
    | Finish
    | TakeCheckpoint
)


def stream(seed: int, epoch: int, number: int) -> Iterator[Command]:
    """A stream's commands, without an end; the first stream has one."""
    if number == 0:
        yield Open()
        return
    yield from _Stream(random.Random(f"{seed}-{epoch}-{number}"), epoch, number).commands()


class _Stream:
    def __init__(self, rng: random.Random, epoch: int, number: int) -> None:
        self._rng = rng
        self._number = number
        self._keys = count((epoch << 40) + (number << 32) + 1)
        self._deadline_us = START_US + epoch * EPOCH_US + LIFE_US
        self._earlier: list[Command] = []
        self._open_ends: list[Command] = []

    def commands(self) -> Iterator[Command]:
        rng = self._rng
        makers = (
            (self._transfers, 8),
            (self._groups, 3),
            (self._again, 2),
            (self._prepare, 3),
            (self._home, 3),
            (self._resolve, 1),
            (self._change_status, 1),
            (TakeCheckpoint, 2),
        )
        choices, weights = zip(*makers, strict=True)
        while True:
            if self._open_ends and rng.random() < 0.3:
                yield self._open_ends.pop(0)
                continue
            command: Command = rng.choices(choices, weights)[0]()
            if isinstance(command, Transfers | Groups):
                self._earlier.append(command)
            yield command

    def _move(self, source: int = 0, destination: int = 0) -> Move:
        rng = self._rng
        source = source or rng.choice((BANK, BANK, rng.choice(PLAYERS)))
        destination = destination or rng.choice([x for x in PLAYERS if x != source])
        metadata = rng.randbytes(rng.choice((0, 0, 0, 7, 200)))
        return Move(source, destination, rng.randrange(1, 400), rng.choice((1, 1, 2)), metadata)

    def _transfers(self) -> Transfers:
        rng = self._rng
        moves = [self._move() for _ in range(rng.choice((1, 1, 2, 12)))]
        if rng.random() < 0.1:
            moves.append(self._move(destination=FROZEN[self._number]))  # refused while it is frozen
        return Transfers(tuple((next(self._keys), each) for each in moves))

    def _groups(self) -> Groups:
        groups = [
            (next(self._keys), tuple(self._move() for _ in range(self._rng.choice((2, 3, 5)))))
            for _ in range(self._rng.choice((1, 2)))
        ]
        return Groups(tuple(groups))

    def _again(self) -> Command:
        """A repeat; or a key reused for another amount, which changes nothing."""
        if not self._earlier:
            return self._transfers()
        command = self._rng.choice(self._earlier)
        if isinstance(command, Transfers) and self._rng.random() < 0.3:
            (key, move), *_ = command.asked
            return Transfers(((key, move._replace(amount_minor=move.amount_minor + 1)),))
        return command

    def _attempt(self, *moves: Move, deadline_us: int = 0) -> Attempt:
        key = next(self._keys)
        is_group = len(moves) > 1
        return Attempt(key, deadline_us or self._deadline_us, moves, key, is_group)

    def _prepare(self) -> Prepare:
        moves = [self._move(source=self._rng.choice(FOREIGN))]
        if self._rng.random() < 0.4:
            moves.append(self._move(destination=self._rng.choice(FOREIGN)))
        attempt = self._attempt(*moves)
        self._open_ends.append(End(attempt, commit=self._rng.random() < 0.7))
        return Prepare(attempt)

    def _home(self) -> CommitHome:
        moves = [self._move(destination=self._rng.choice(FOREIGN))]
        if self._rng.random() < 0.4:
            moves.append(self._move(source=moves[0].source))
        attempt = self._attempt(*moves)
        self._open_ends.append(Finish(attempt))
        return CommitHome(attempt)

    def _resolve(self) -> Resolve:
        """Of an attempt whose COMMIT was lost on the way; it comes late, and is refused."""
        past_us = self._deadline_us - LIFE_US - 1
        move = self._move(destination=self._rng.choice(FOREIGN))
        attempt = self._attempt(move, deadline_us=past_us)
        self._open_ends.append(CommitHome(attempt))
        return Resolve(attempt)

    def _change_status(self) -> ChangeStatus:
        return ChangeStatus(FROZEN[self._number], self._rng.choice((1, 2)))


def _id(key: int) -> bytes:
    return key.to_bytes(16, "big")


async def execute(engine: Engine, command: Command, prepared: set[bytes]) -> bytes:
    """Has an engine execute a command; returns its durable answer, packed.

    Args:
        engine: running.
        command: what is asked.
        prepared: the transactions that voted YES here, kept up to date.
    """
    participant = engine.ledger.participant
    match command:
        case Open():
            results = await engine.open_accounts(command.specs())
            return bytes(status for status, _ in results)
        case Transfers(asked):
            metadata = b"".join(move.metadata for _, move in asked)
            return await engine.execute(b"".join(command.bodies()), metadata)
        case Groups():
            return await engine.execute_groups(command.members())
        case ChangeStatus(account_id, status):
            account, _ = await engine.change_status(account_id, status, "asked to")
            return bytes([account.status])
        case Prepare(attempt):
            call = partial(participant.prepare, attempt.request(HERE), room=True)
            (vote,) = await engine.finish_begun([call], [len(attempt.moves) + 1])
            if VOTE.unpack(vote)[0] == Vote.YES:
                prepared.add(attempt.transaction_id)
            return vote
        case End(attempt, commit):
            return await _end(engine, attempt, commit=commit and attempt.transaction_id in prepared)
        case CommitHome(attempt):
            home = partial(participant.commit_home, attempt.request(), (Vote.YES, 0, 0))
            (answer,) = await engine.finish_begun([home], [3 * len(attempt.moves) + 1])
            return answer
        case Resolve(attempt):
            resolve = partial(participant.resolve, attempt.transaction_id, attempt.deadline_us)
            return (await engine.finish_begun([resolve], [1]))[0]
        case Finish(attempt):
            forget = partial(participant.finish, [attempt.transaction_id])
            await engine.finish_begun([_told(forget)], [2])
        case TakeCheckpoint():
            await engine.checkpoint()
    return b""


async def _end(engine: Engine, attempt: Attempt, *, commit: bool) -> bytes:
    participant = engine.ledger.participant
    if commit:
        decided_us = attempt.deadline_us - LIFE_US + 1
        call = partial(participant.commit_prepared, attempt.transaction_id, decided_us)
    else:
        call = partial(participant.abort, attempt.transaction_id, attempt.deadline_us)
    await engine.finish_begun([_told(call)], [len(attempt.moves) + 1])
    return bytes([commit])


def _told(call: Callable[[], None]) -> Callable[[], bytes]:
    """A call that has no answer, as one that has."""

    def tell() -> bytes:
        call()
        return b""

    return tell
