"""All transactions in progress: carries the two-phase machine's actions to the shards, batched.

Each kind of message to each shard has a lane, so whatever is at hand goes in one PREPARE, one
COMMIT to the home and one COMMIT to the participants for each shard: that is a round. A shard is
home of some transactions and participant of others, and several rounds overlap. No transaction has
a task, a timer or a future of its own; calls have. An attempt begins when its route has room
(`routes`), so that overload makes transactions wait and never makes them late.

A transaction goes on after its client's time is over, until what it has begun is settled or a call
for it fails; from there on a sweep settles it (see `recovery`).
"""

import asyncio
import functools
import random
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from typing import Final

import grpc
import structlog

from cluster.clock import HybridClock
from cluster.faults import Fault
from cluster.packed import (
    ANSWER_BYTES,
    BATCH_TRANSFERS_MAX,
    ID_RANDOM_BYTES,
    ID_TIME_BYTES,
    VOTE_BYTES,
)
from cluster.shard_client import (
    ABORT_PREPARED,
    COMMIT_HOME,
    COMMIT_PREPARED,
    FINISH,
    PREPARE,
    Method,
    Q,
    R,
)
from coordinator.actions import (
    NOT_UNDERSTOOD,
    AbortPrepared,
    Actions,
    Answer,
    CommitHome,
    CommitPrepared,
    Finish,
    Prepare,
    Retry,
)
from coordinator.counters import Counters
from coordinator.lanes import Lane, LaneRules
from coordinator.routes import TURN_MAX, Routes
from coordinator.shards import Shards
from coordinator.states import State
from coordinator.transactions import Item, Job
from coordinator.two_phase import IllegalTransition
from coordinator.window import Ending, WindowRules
from doubloon.v1 import shard_service_pb2 as shard_pb2

# An attempt that takes longer is given up by its home. Ample beside a shard node's restart, short
# beside a person's patience for money that is reserved in vain.
TRANSACTION_LIFE_US: Final = 5_000_000
# Long enough for a shard node to restart, so that an attempt survives it; well within its life.
CALL_TIMEOUT_S: Final = 2.0
# What stands in the way is most often decided within a few round trips.
RETRY_FIRST_S: Final = 0.01
RETRY_MAX_S: Final = 0.5
# Forgetting decisions is nobody's hurry; a shard's table of them has room for seconds.
FINISH_HOLD_S: Final = 0.05
# What waits for a shard that is away. Beyond it the sweep, and the deadlines, do the same.
LAZY_QUEUED_MAX: Final = 8 * BATCH_TRANSFERS_MAX
# Sixteen full batches, some 25 MB of packed members with what Python adds: a second's work.
IN_PROGRESS_MAX: Final = 16 * BATCH_TRANSFERS_MAX
# A call that ends at its client's deadline is heard before the client is answered.
DEADLINE_GRACE_S: Final = 0.01

# Taken from its enumeration, a member costs ten times what a global does (CPython 3.11).
_ENDED: Final = State.ENDED
_PREPARING: Final = State.PREPARING
_WAITING: Final = State.WAITING
_DONE: Final = Ending.DONE
_RETRYING: Final = Ending.RETRYING
_CUT_OFF: Final = Ending.CUT_OFF

_LOG = structlog.stdlib.get_logger("rounds")


class Rounds:
    """The transactions in progress.

    Args:
        shards: see there.
        clock: stamps deadlines and requests, and observes the shards' clocks.
        rng: for jitter.
        random_bytes: gives so many, for transaction ids: nobody else may ever draw the same.
        in_progress_max: members in progress; beyond it callers hear RESOURCE_EXHAUSTED.
        life_us: how long an attempt may take until its home gives it up.
        rules: of the lanes on a client's way.
        window_rules: of what may be under way; None = those that follow from the life.

    Attributes:
        counters: see there.
        in_progress: transactions.
    """

    def __init__(
        self,
        shards: Shards,
        clock: HybridClock,
        rng: random.Random,
        random_bytes: Callable[[int], bytes],
        in_progress_max: int = IN_PROGRESS_MAX,
        life_us: int = TRANSACTION_LIFE_US,
        rules: LaneRules | None = None,
        window_rules: WindowRules | None = None,
    ) -> None:
        self._shards = shards
        self._clock = clock
        self._rng = rng
        self._random_bytes = random_bytes
        self._in_progress_max = in_progress_max
        self._members_in_progress = 0
        self._life_us = life_us
        self._rules = rules or LaneRules()
        self._routes = Routes(self._begin, window_rules or WindowRules(life_us / 1e6))
        # By (shard, topology version by which the members name their shards).
        self._prepares: dict[tuple[int, int], Lane[Item]] = {}
        self._homes: dict[tuple[int, int], Lane[Item]] = {}
        # By shard.
        self._posts: dict[int, Lane[Item]] = {}
        self._aborts: dict[int, Lane[bytes]] = {}
        self._finishes: dict[int, Lane[bytes]] = {}
        self._round_began_s = -1.0
        self.counters = Counters()
        self.in_progress = 0

    def check_room(self, members: int) -> None:
        """Raise what `execute` would raise for so many members."""
        # A batch that finds nothing in progress is taken whatever its size.
        taken = self._members_in_progress
        if taken and taken + members > self._in_progress_max:
            raise Fault(
                grpc.StatusCode.RESOURCE_EXHAUSTED,
                f"{self.in_progress} transactions are in progress in this coordinator",
            )

    async def execute(
        self, items: Sequence[Item], topology_version: int, deadline_s: float
    ) -> bytes:
        """Run transactions; return their packed results, in order.

        Args:
            items: at least one, none begun.
            topology_version: by which they name their shards.
            deadline_s: when to answer at the latest, in the running loop's time.

        Raises:
            Fault: RESOURCE_EXHAUSTED, definite: nothing was begun.
        """
        weight = sum(item.size for item in items)
        self.check_room(weight)
        self._members_in_progress += weight
        self.in_progress += len(items)
        self.counters.transactions += len(items)
        done = asyncio.Event()
        job = Job(len(items), done.set)
        for position, item in enumerate(items):
            item.job, item.position, item.topology_version = job, position, topology_version
            item.deadline_s = deadline_s
        try:
            with suppress(TimeoutError):
                async with asyncio.timeout_at(deadline_s + DEADLINE_GRACE_S):
                    for at in range(0, len(items), TURN_MAX):
                        await _next_turn(at)
                        self._routes.offer(items[at : at + TURN_MAX])
                    await done.wait()
        finally:
            # Also when the caller went away: whatever nobody waits for any more is told so.
            for item in items:
                if not item.is_settled and not item.is_answered:
                    self._apply(item, item.deadline(), _CUT_OFF)
        return b"".join(job.results)

    async def close(self, grace_s: float) -> None:
        """Let what is settled without a client end, for so long; nothing more begins."""
        for item in self._routes.close():
            self._apply(item, item.deadline(), _CUT_OFF)
        lanes: list[Lane[Item] | Lane[bytes]] = [
            *self._prepares.values(), *self._homes.values(), *self._posts.values(),
            *self._aborts.values(), *self._finishes.values(),
        ]  # fmt: skip
        await asyncio.gather(*(lane.close(grace_s) for lane in lanes))

    # --- from actions to lanes ------------------------------------------------------------------

    def _begin(self, items: list[Item]) -> None:
        """Begin an attempt of each."""
        now_us = self._clock.tick()
        deadline_us = now_us + self._life_us
        began = (now_us // 1_000).to_bytes(ID_TIME_BYTES, "big")
        drawn = self._random_bytes(ID_RANDOM_BYTES * len(items))
        version = self._shards.topology.version
        for at, item in enumerate(items):
            if item.topology_version != version:
                # Its members name the wrong shards by now; nothing of it has happened.
                self._apply(item, item.deadline(), _CUT_OFF)
                continue
            start = at * ID_RANDOM_BYTES
            transaction_id = began + drawn[start : start + ID_RANDOM_BYTES]
            self._apply(item, item.begin(transaction_id, deadline_us))

    def _apply(self, item: Item, actions: Actions, ending: Ending = _DONE) -> None:
        """Do what a transaction's event called for; `ending` tells why, in case that it ended."""
        for action in actions:
            # Neither `match` nor `isinstance`, which take several times as long.
            if type(action) is CommitPrepared:
                item.decision = action.decision
                for shard in action.shards:
                    self._post_lane(shard).put(item)
            elif type(action) is CommitHome:
                item.vote_asked = action.vote
                self._home_lane(item.home, item.topology_version).put(item, item.size)
            elif type(action) is Answer:
                self._answer(item, action.result)
            elif type(action) is Finish:
                self._finish_lane(item.home).put(item.transaction_id)
            elif type(action) is Prepare:
                for shard in item.participants:
                    self._prepare_lane(shard, item.topology_version).put(item, item.size)
            elif type(action) is AbortPrepared:
                for shard in action.shards:
                    self._abort_lane(shard).put(action.transaction)
            else:
                assert type(action) is Retry, "every action is known"
                self.counters.busy += 1
                self._routes.leave(item, _RETRYING)
        if item.state is _ENDED and not item.is_settled:
            self._settle(item, ending)

    def _answer(self, item: Item, result: bytes) -> None:
        assert item.job is not None, "it is being executed"
        item.job.answer(item.position, result)

    def _settle(self, item: Item, ending: Ending) -> None:
        item.is_settled = True
        self._routes.leave(item, ending)
        self.in_progress -= 1
        self._members_in_progress -= item.size

    def _give_up(self, item: Item, error: IllegalTransition) -> None:
        """A shard broke the protocol: leave the transaction to the sweep, and say so."""
        _LOG.error("protocol_broken", transaction=item.transaction_id.hex(), reason=str(error))
        if not item.is_answered:
            self._answer(item, NOT_UNDERSTOOD)
        self._settle(item, _RETRYING)

    def _retry_later(self, items: Iterable[Item]) -> None:
        """Begin anew, after a pause, those of the items that wait for it."""
        by_attempts: dict[int, list[Item]] = {}
        for item in items:
            if item.state is _WAITING and not item.is_settled:
                by_attempts.setdefault(item.attempts, []).append(item)
        for attempts, waiting in by_attempts.items():
            pause_s = min(RETRY_FIRST_S * 2 ** (attempts - 1), RETRY_MAX_S)
            asyncio.get_running_loop().call_later(
                pause_s * self._rng.uniform(0.5, 1.0), self._retry, waiting
            )

    def _retry(self, items: list[Item]) -> None:
        self._routes.offer(item for item in items if item.state is _WAITING)

    # --- calls to shards ------------------------------------------------------------------------

    async def _prepare(self, shard: int, version: int, batch: list[Item]) -> bool:
        """PREPARE; what has ended while it waited is left out."""
        batch = [item for item in batch if item.state is _PREPARING]
        if not batch:
            return True
        self._count_round()
        headers: list[bytes] = []
        members: list[bytes] = []
        metadata: list[bytes] = []
        for item in batch:
            header, own_members, own_metadata = item.for_participant(shard)
            headers.append(header)
            members.append(own_members)
            metadata.append(own_metadata)
        request = shard_pb2.PrepareRequest(
            headers=b"".join(headers),
            members=b"".join(members),
            metadata=b"".join(metadata),
            clock_us=self._clock.tick(),
        )
        response = await self._call(shard, PREPARE, request, version)
        votes = b"" if response is None else response.votes
        if response is None or len(votes) != len(batch) * VOTE_BYTES:
            for item in batch:
                self._event(item, lambda item: item.unreached(shard))
            return False
        self._clock.observe(response.clock_us)
        for at, item in enumerate(batch):
            if at % TURN_MAX == 0:
                await _next_turn(at)
            start = at * VOTE_BYTES
            self._voted(item, shard, votes[start], votes[start + 1], votes[start + 2])
        return True

    def _voted(self, item: Item, shard: int, vote: int, reason: int, index: int) -> None:
        # As `_event`, but for the cost of a call that it is given: so are the other two.
        if item.is_settled:
            return
        try:
            actions = item.vote(shard, vote, reason, index)
        except IllegalTransition as error:
            self._give_up(item, error)
        else:
            self._follow(item, actions)

    async def _commit_home(self, shard: int, version: int, batch: list[Item]) -> bool:
        """COMMIT, to the home."""
        request = shard_pb2.CommitHomeRequest(
            headers=b"".join([item.header for item in batch]),
            members=b"".join([item.members for item in batch]),
            metadata=b"".join([item.metadata for item in batch]),
            votes=b"".join([item.vote_asked for item in batch]),
            clock_us=self._clock.tick(),
        )
        response = await self._call(shard, COMMIT_HOME, request, version)
        answers = b"" if response is None else response.answers
        if response is None or len(answers) != len(batch) * ANSWER_BYTES:
            for item in batch:
                self._event(item, lambda item: item.home_unknown())
            self._retry_later(batch)
            return False
        self._clock.observe(response.clock_us)
        for at, item in enumerate(batch):
            if at % TURN_MAX == 0:
                await _next_turn(at)
            self._decided(item, answers[at * ANSWER_BYTES : (at + 1) * ANSWER_BYTES])
        self._retry_later(batch)
        return True

    def _decided(self, item: Item, answer: bytes) -> None:
        if not item.is_settled:
            try:
                actions = item.home_answer(answer)
            except IllegalTransition as error:
                self._give_up(item, error)
            else:
                self._follow(item, actions)
        self.counters.count_outcome(answer[0], answer[1])

    async def _commit_prepared(self, shard: int, batch: list[Item]) -> bool:
        """COMMIT, to a participant."""
        request = shard_pb2.CommitPreparedRequest(
            decisions=b"".join([item.decision for item in batch]), clock_us=self._clock.tick()
        )
        response = await self._call(shard, COMMIT_PREPARED, request)
        if response is None:
            for item in batch:
                self._event(item, lambda item: item.post_unknown(shard))
            return False
        self._clock.observe(response.clock_us)
        for at, item in enumerate(batch):
            if at % TURN_MAX == 0:
                await _next_turn(at)
            self._posted(item, shard)
        return True

    def _posted(self, item: Item, shard: int) -> None:
        if item.is_settled:
            return
        try:
            actions = item.posted(shard)
        except IllegalTransition as error:
            self._give_up(item, error)
        else:
            self._follow(item, actions)

    async def _abort(self, shard: int, batch: list[bytes]) -> bool:
        request = shard_pb2.AbortPreparedRequest(transactions=b"".join(batch))
        return await self._call(shard, ABORT_PREPARED, request) is not None

    async def _finish(self, shard: int, batch: list[bytes]) -> bool:
        request = shard_pb2.FinishRequest(transaction_ids=b"".join(batch))
        return await self._call(shard, FINISH, request) is not None

    async def _call(
        self, shard: int, method: Method[Q, R], request: Q, version: int = 0
    ) -> R | None:
        """Ask a shard; None = whatever went wrong, whether it did it is not known.

        What names transactions by id alone is asked by today's topology (version 0).
        """
        self.counters.shard_calls += 1
        deadline_s = asyncio.get_running_loop().time() + CALL_TIMEOUT_S
        try:
            version = version or self._shards.topology.version
            return await self._shards.call(shard, method, request, version, deadline_s)
        except Fault as fault:
            _LOG.debug("call_failed", shard=shard, method=method.name, fault=str(fault))
            return None

    def _event(self, item: Item, event: Callable[[Item], Actions]) -> None:
        """Apply an event and do what it calls for."""
        if item.is_settled:
            return
        try:
            actions = event(item)
        except IllegalTransition as error:
            self._give_up(item, error)
        else:
            self._follow(item, actions)

    def _follow(self, item: Item, actions: Actions) -> None:
        """Do what an event called for, if anything."""
        if actions or item.state is _ENDED:
            self._apply(item, actions)

    # --- lanes ----------------------------------------------------------------------------------

    def _prepare_lane(self, shard: int, version: int) -> Lane[Item]:
        lane = self._prepares.get((shard, version))
        if lane is None:
            _drop_others(self._prepares, version)
            send = functools.partial(self._prepare, shard, version)
            lane = self._prepares[shard, version] = Lane(send, self._rng, self._rules)
        return lane

    def _home_lane(self, shard: int, version: int) -> Lane[Item]:
        lane = self._homes.get((shard, version))
        if lane is None:
            _drop_others(self._homes, version)
            send = functools.partial(self._commit_home, shard, version)
            lane = self._homes[shard, version] = Lane(send, self._rng, self._rules)
        return lane

    def _post_lane(self, shard: int) -> Lane[Item]:
        lane = self._posts.get(shard)
        if lane is None:
            send = functools.partial(self._commit_prepared, shard)
            lane = self._posts[shard] = Lane(send, self._rng, self._rules)
        return lane

    def _abort_lane(self, shard: int) -> Lane[bytes]:
        lane = self._aborts.get(shard)
        if lane is None:
            rules = LaneRules(queued_max=LAZY_QUEUED_MAX)
            send = functools.partial(self._abort, shard)
            lane = self._aborts[shard] = Lane(send, self._rng, rules)
        return lane

    def _finish_lane(self, shard: int) -> Lane[bytes]:
        lane = self._finishes.get(shard)
        if lane is None:
            rules = LaneRules(calls_max=1, hold_s=FINISH_HOLD_S, queued_max=LAZY_QUEUED_MAX)
            send = functools.partial(self._finish, shard)
            lane = self._finishes[shard] = Lane(send, self._rng, rules)
        return lane

    # --- small parts ----------------------------------------------------------------------------

    def _count_round(self) -> None:
        """Count calls that begin in one turn of the loop once."""
        now_s = asyncio.get_running_loop().time()
        if now_s != self._round_began_s:
            self._round_began_s = now_s
            self.counters.rounds += 1


async def _next_turn(done: int) -> None:
    """Give the loop a turn after so many, or a full batch would hold it up for tens of ms."""
    if done:
        await asyncio.sleep(0)


def _drop_others(lanes: dict[tuple[int, int], Lane[Item]], version: int) -> None:
    """Forget idle lanes of other topologies, so that there is never more than what is in use."""
    for key in [key for key, lane in lanes.items() if key[1] != version and lane.is_idle]:
        del lanes[key]
