"""Parts of the product that are wrong on purpose: each must turn the simulation red, and soon.

Each takes the place of one real part for as long as its context lasts, and changes as little as
the mistake would.
"""

from __future__ import annotations

import contextlib
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from cluster.clock import HybridClock
from shard_node import startup
from shard_node.committer import Committer, _resolve
from shard_node.ledger import Ledger
from shard_node.memory import Draft
from shard_node.participant import Participant
from shard_node.posting import Poster
from shard_node.service import ShardServicer
from tests.whole_cluster.disk import DiskAppender

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable, Iterator, Sequence
    from contextlib import AbstractContextManager

    from shard_node.records import BlockDraft


@dataclass(frozen=True)
class Mutant:
    """A mistake.

    Attributes:
        name: what it does wrong.
        changes: the part that is not the real one.
        rig: what must notice.
        planted: a context in which it is made.
    """

    name: str
    changes: str
    rig: str
    planted: Callable[[], AbstractContextManager[None]]


@contextmanager
def _instead(owner: Any, name: str, wrong: Any) -> Iterator[None]:
    """Puts something wrong in the place of an attribute."""
    right = vars(owner)[name]
    setattr(owner, name, wrong)
    try:
        yield
    finally:
        setattr(owner, name, right)


def _acknowledge_before_sync() -> AbstractContextManager[None]:
    def when_durable(self: Committer, sequence: int, future: asyncio.Future[None]) -> None:
        del sequence
        self.kick()
        _resolve(future)

    return _instead(Committer, "when_durable", when_durable)


def _forget_a_key_after_restart() -> AbstractContextManager[None]:
    right = Ledger.replay

    def replay(self: Ledger, block: BlockDraft) -> None:
        right(self, block)
        self.memory.keys.drop(1)

    return _instead(Ledger, "replay", replay)


def _say_that_more_is_durable() -> AbstractContextManager[None]:
    """What was sealed while the append ran is acknowledged with it, and lost in a crash."""
    right = Committer._release

    def release(self: Committer) -> None:
        if self._waiting:
            self.durable_sequence = max(self.durable_sequence, self._waiting[-1][0])
        right(self)

    return _instead(Committer, "_release", release)


def _ignore_a_failed_sync() -> AbstractContextManager[None]:
    async def append(self: DiskAppender, blocks: Sequence[BlockDraft]) -> None:
        values, last = self._log.chain(blocks)
        with contextlib.suppress(OSError):
            await self._log.disk.append(values)
        self._log.last = last

    return _instead(DiskAppender, "append", append)


def _miss_a_dirty_row() -> AbstractContextManager[None]:
    right = Draft.take

    def take(self: Draft, accounts_max: int) -> Any:
        rows = right(self, accounts_max)
        return rows and rows._replace(balances=rows.balances[1:])

    return _instead(Draft, "take", take)


def _accept_any_topology() -> AbstractContextManager[None]:
    def check_target(self: ShardServicer, context: Any) -> None:
        del self, context

    return _instead(ShardServicer, "_check_target", check_target)


def _begin_with_the_wall_clock() -> AbstractContextManager[None]:
    right = startup.recovered

    def recovered(*args: Any) -> tuple[Ledger, HybridClock]:
        ledger, _ = right(*args)
        return ledger, HybridClock(args[-1])

    return _instead(startup, "recovered", recovered)


def _forget_an_abort() -> AbstractContextManager[None]:
    def abort(self: Participant, transaction_id: bytes, deadline_us: int) -> None:
        del self, transaction_id, deadline_us

    return _instead(Participant, "abort", abort)


def _apply_one_leg() -> AbstractContextManager[None]:
    right = Poster.post

    def post(self: Poster, legs: Any, *args: Any, **kwargs: Any) -> Any:
        return right(self, legs[:1], *args, **kwargs)

    return _instead(Poster, "post", post)


RIG: Final = "python -m tests.whole_cluster"

MUTANTS: Final[tuple[Mutant, ...]] = (
    Mutant(
        "acknowledge before the sync",
        "shard_node.committer.Committer.when_durable",
        RIG,
        _acknowledge_before_sync,
    ),
    Mutant(
        "forget a key after a restart, and do it again",
        "shard_node.ledger.Ledger.replay",
        RIG,
        _forget_a_key_after_restart,
    ),
    Mutant(
        "take for durable what the next append will write",
        "shard_node.committer.Committer._release",
        RIG,
        _say_that_more_is_durable,
    ),
    Mutant(
        "go on after a failed sync",
        "shard_node.committer.Appender",
        RIG,
        _ignore_a_failed_sync,
    ),
    Mutant(
        "leave a changed row out of a checkpoint",
        "shard_node.memory.Draft.take",
        RIG,
        _miss_a_dirty_row,
    ),
    Mutant(
        "answer by a stale topology",
        "shard_node.service.ShardServicer._check_target",
        RIG,
        _accept_any_topology,
    ),
    Mutant(
        "begin with the wall clock, wherever the log's time is",
        "shard_node.startup.recovered",
        RIG,
        _begin_with_the_wall_clock,
    ),
    Mutant(
        "forget to abort what is prepared",
        "shard_node.participant.Participant.abort",
        RIG,
        _forget_an_abort,
    ),
    Mutant(
        "post only the first of several legs",
        "shard_node.posting.Poster.post",
        RIG,
        _apply_one_leg,
    ),
)
"""Every planted bug."""
