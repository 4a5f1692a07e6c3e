"""The sweep: settles what coordinators that died, or gave up, have left in doubt.

Every coordinator sweeps, about once a second, with jitter: asks every shard what has been in doubt
for a while, asks the homes what became of it, and tells everybody concerned. A sweep knows nothing
but what the shards tell it and each of its steps may be done twice, in part, or by several at once:

    listed                      asked                  then
    PREPARED on a participant   RESOLVE, its home      COMMITTED: COMMIT; ABORTED: ABORT;
                                                       UNDECIDED: left alone until its deadline
    COMMITTED on its home       –                      COMMIT to every participant; once all have
                                                       answered, FINISH

COMMIT and ABORT follow only from what the home's log says for ever, whoever asks. COMMIT of what is
not prepared any more changes nothing. FINISH follows only from the answers of all participants.

The first half of this module is pure: listings and answers in, steps out.
"""

import asyncio
import random
from collections.abc import Coroutine, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, TypeVar

import grpc
import structlog

from cluster.clock import HybridClock
from cluster.faults import Fault
from cluster.packed import BATCH_TRANSFERS_MAX, DECISION, RESOLUTION, Fate
from cluster.shard_client import (
    ABORT_PREPARED,
    COMMIT_PREPARED,
    FINISH,
    LIST_TRANSACTIONS,
    RESOLVE,
)
from coordinator.shards import Shards
from doubloon.v1 import coordinator_service_pb2 as coordinator_pb2
from doubloon.v1 import shard_service_pb2 as shard_pb2

# Half as often as anybody would notice; the jitter keeps coordinators from sweeping in step.
SWEEP_PERIOD_S: Final = 1.0
# What is younger is most likely in a living coordinator's hands: it needs milliseconds.
IN_DOUBT_US: Final = 2_000_000
# One call's worth from each shard at a time; what is left comes with the next sweep.
SWEEP_MAX: Final = BATCH_TRANSFERS_MAX
# A shard that does not answer by then is away; the others' work goes on, and it is asked again.
CALL_TIMEOUT_S: Final = 2.0

_PREPARED: Final = coordinator_pb2.TRANSACTION_STATE_PREPARED
_COMMITTED: Final = coordinator_pb2.TRANSACTION_STATE_COMMITTED

A = TypeVar("A")

_LOG = structlog.stdlib.get_logger("recovery")

Decision = tuple[bytes, int]
"""Transaction id and a time: when it was decided, or its deadline."""


@dataclass(frozen=True)
class InDoubt:
    """What shards have told, put in order.

    Attributes:
        prepared: participant → (home, id, deadline) of each.
        committed: (home, id, decided, participants) of each.
    """

    prepared: Mapping[int, Sequence[tuple[int, bytes, int]]]
    committed: Sequence[tuple[int, bytes, int, tuple[int, ...]]]

    @property
    def found(self) -> int:
        """How many different transactions."""
        ids = {each[1] for held in self.prepared.values() for each in held}
        return len(ids | {each[1] for each in self.committed})

    def to_resolve(self) -> dict[int, list[Decision]]:
        """Return what to ask each home: its transactions, each once, with their deadlines."""
        known = {transaction_id for _, transaction_id, _, _ in self.committed}
        asked: dict[int, dict[bytes, int]] = {}
        for held in self.prepared.values():
            for home, transaction_id, deadline_us in held:
                if transaction_id not in known:
                    asked.setdefault(home, {})[transaction_id] = deadline_us
        return {home: list(ids.items()) for home, ids in asked.items()}


@dataclass
class Steps:
    """What to tell the participants. Each only says what a home's log says already.

    Attributes:
        commit: participant → decisions, each once.
        abort: participant → ids and deadlines, each once.
    """

    commit: dict[int, dict[bytes, int]] = field(default_factory=dict)
    abort: dict[int, dict[bytes, int]] = field(default_factory=dict)


def read_listings(
    listings: Mapping[int, Iterable[coordinator_pb2.TransactionInfo]],
) -> InDoubt:
    """Put in order what each shard (the key) has listed."""
    prepared: dict[int, list[tuple[int, bytes, int]]] = {}
    committed = []
    for shard, transactions in listings.items():
        for one in transactions:
            if one.state == _PREPARED:
                held = one.home_shard_id, one.transaction_id, one.deadline_us
                prepared.setdefault(shard, []).append(held)
            elif one.state == _COMMITTED:
                participants = tuple(one.participant_shard_ids)
                committed.append((shard, one.transaction_id, one.decided_us, participants))
    return InDoubt(prepared, committed)


def plan(in_doubt: InDoubt, resolutions: Mapping[bytes, tuple[int, int]]) -> Steps:
    """Return what follows from what homes have said.

    Args:
        in_doubt: what was listed.
        resolutions: id → (fate, decided) for those of `to_resolve` whose home has answered.
    """
    steps = Steps()
    for _, transaction_id, decided_us, participants in in_doubt.committed:
        for shard in participants:
            steps.commit.setdefault(shard, {})[transaction_id] = decided_us
    for shard, held in in_doubt.prepared.items():
        for _, transaction_id, deadline_us in held:
            fate, decided_us = resolutions.get(transaction_id, (Fate.UNDECIDED, 0))
            if fate == Fate.COMMITTED:
                steps.commit.setdefault(shard, {})[transaction_id] = decided_us
            elif fate == Fate.ABORTED:
                steps.abort.setdefault(shard, {})[transaction_id] = deadline_us
    return steps


def to_finish(in_doubt: InDoubt, posted: Mapping[int, Iterable[bytes]]) -> dict[int, list[bytes]]:
    """Return home → ids of what all its participants (the keys of `posted`) have posted."""
    posted_ids = {shard: frozenset(ids) for shard, ids in posted.items()}
    finished: dict[int, list[bytes]] = {}
    for home, transaction_id, _, participants in in_doubt.committed:
        if all(transaction_id in posted_ids.get(shard, ()) for shard in participants):
            finished.setdefault(home, []).append(transaction_id)
    return finished


# --- the rim: asks and tells ----------------------------------------------------------------------


@dataclass(frozen=True)
class Swept:
    """What one sweep came to, in transactions.

    Attributes:
        found: in doubt.
        committed, aborted: told so to every participant of them that could be reached.
        finished: of those committed, forgotten by their homes.
        unreached: shards that did not answer.
    """

    found: int = 0
    committed: int = 0
    aborted: int = 0
    finished: int = 0
    unreached: tuple[int, ...] = ()


class Sweeper:
    """Sweeps.

    Args:
        shards: see there.
        clock: says what is old, and observes the shards' clocks.
        rng: for jitter.
        period_s: between two sweeps, on average.

    Attributes:
        swept: transactions settled since the process started.
    """

    def __init__(
        self,
        shards: Shards,
        clock: HybridClock,
        rng: random.Random,
        period_s: float = SWEEP_PERIOD_S,
    ) -> None:
        self._shards = shards
        self._clock = clock
        self._rng = rng
        self._period_s = period_s
        self.swept = 0

    async def run(self) -> None:
        """Sweep for ever, from the moment there is a topology."""
        while True:
            await asyncio.sleep(self._period_s * self._rng.uniform(0.5, 1.5))
            try:
                done = await self.sweep()
            except Fault as fault:
                _LOG.warning("sweep_failed", fault=str(fault))
                continue
            if done.found:
                _LOG.info(
                    "swept",
                    found=done.found,
                    committed=done.committed,
                    aborted=done.aborted,
                    finished=done.finished,
                    unreached=list(done.unreached),
                )

    async def sweep(self) -> Swept:
        """Settle what has been in doubt for a while, as far as the shards concerned answer.

        Raises:
            Fault: there is no topology.
        """
        topology = self._shards.topology
        version = topology.version
        since_us = self._clock.tick() - IN_DOUBT_US
        listings = await _each(
            {shard: self._list(shard, since_us, version) for shard in topology.shards}
        )
        unreached = tuple(shard for shard in topology.shards if shard not in listings)
        in_doubt = read_listings(listings)
        if not in_doubt.found:
            return Swept(unreached=unreached)
        answers = await _each(
            {
                home: self._resolve(home, asked, version)
                for home, asked in in_doubt.to_resolve().items()
            }
        )
        steps = plan(in_doubt, {key: each for one in answers.values() for key, each in one.items()})
        posted, aborted = await asyncio.gather(
            _each({s: self._commit(s, ids, version) for s, ids in steps.commit.items()}),
            _each({s: self._abort(s, ids, version) for s, ids in steps.abort.items()}),
        )
        finishing = to_finish(in_doubt, posted)
        finished = await _each({s: self._finish(s, ids, version) for s, ids in finishing.items()})
        committed_ids = {each for ids in posted.values() for each in ids}
        aborted_ids = {each for ids in aborted.values() for each in ids}
        self.swept += len(committed_ids | aborted_ids)
        return Swept(
            in_doubt.found,
            len(committed_ids),
            len(aborted_ids),
            sum(len(ids) for ids in finished.values()),
            unreached,
        )

    async def _list(
        self, shard: int, since_us: int, version: int
    ) -> Sequence[coordinator_pb2.TransactionInfo]:
        request = shard_pb2.ListTransactionsRequest(since_us=since_us, limit=SWEEP_MAX)
        response = await self._shards.call(
            shard, LIST_TRANSACTIONS, request, version, _deadline_s()
        )
        return response.transactions

    async def _resolve(
        self, home: int, asked: Sequence[Decision], version: int
    ) -> dict[bytes, tuple[int, int]]:
        resolutions: dict[bytes, tuple[int, int]] = {}
        # More than one call's worth when many participants hold what one home decides.
        for start in range(0, len(asked), BATCH_TRANSFERS_MAX):
            part = asked[start : start + BATCH_TRANSFERS_MAX]
            request = shard_pb2.ResolveRequest(transactions=_packed(part))
            response = await self._shards.call(home, RESOLVE, request, version, _deadline_s())
            self._clock.observe(response.clock_us)
            if len(response.resolutions) != len(part) * RESOLUTION.size:
                raise Fault(grpc.StatusCode.INTERNAL, f"shard {home} resolved another number")
            told = RESOLUTION.iter_unpack(response.resolutions)
            for (transaction_id, _), (fate, decided_us) in zip(part, told, strict=True):
                resolutions[transaction_id] = fate, decided_us
        return resolutions

    async def _commit(
        self, shard: int, decisions: Mapping[bytes, int], version: int
    ) -> Sequence[bytes]:
        items = list(decisions.items())
        for start in range(0, len(items), BATCH_TRANSFERS_MAX):
            request = shard_pb2.CommitPreparedRequest(
                decisions=_packed(items[start : start + BATCH_TRANSFERS_MAX]),
                clock_us=self._clock.tick(),
            )
            response = await self._shards.call(
                shard, COMMIT_PREPARED, request, version, _deadline_s()
            )
            self._clock.observe(response.clock_us)
        return tuple(decisions)

    async def _abort(
        self, shard: int, transactions: Mapping[bytes, int], version: int
    ) -> Sequence[bytes]:
        request = shard_pb2.AbortPreparedRequest(transactions=_packed(transactions.items()))
        await self._shards.call(shard, ABORT_PREPARED, request, version, _deadline_s())
        return tuple(transactions)

    async def _finish(self, home: int, ids: Sequence[bytes], version: int) -> Sequence[bytes]:
        request = shard_pb2.FinishRequest(transaction_ids=b"".join(ids))
        await self._shards.call(home, FINISH, request, version, _deadline_s())
        return ids


def _packed(decisions: Iterable[Decision]) -> bytes:
    return b"".join([DECISION.pack(*each) for each in decisions])


def _deadline_s() -> float:
    return asyncio.get_running_loop().time() + CALL_TIMEOUT_S


async def _each(calls: Mapping[int, Coroutine[Any, Any, A]]) -> dict[int, A]:
    """Make calls to shards all at once; return the answers of those that gave one."""

    async def attempt(call: Coroutine[Any, Any, A]) -> A | None:
        try:
            return await call
        except Fault as fault:
            _LOG.debug("call_failed", fault=str(fault))
            return None

    answers = await asyncio.gather(*(attempt(call) for call in calls.values()))
    return {
        shard: answer for shard, answer in zip(calls, answers, strict=True) if answer is not None
    }
