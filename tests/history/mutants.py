"""Processes that are wrong on purpose: each has one bug, and the rig must find it.

A bug is installed by `launch`, in the process itself and before it starts. It changes as little as
the mistake would; what makes it show sooner (a slow disk, say) is no bug by itself.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from cluster.clock import HybridClock
from cluster.faults import Fault
from coordinator import two_phase
from coordinator.actions import NOT_IN_TIME, Status
from shard_node import startup
from shard_node.committer import Committer
from shard_node.engine import Engine
from shard_node.log import LmdbLog
from shard_node.memory import Memory
from tests.simulation.mutants import ForgetsToLogPrepared

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable

    from shard_node.books import Account

SLOW_S: Final = 0.1  # of a disk on which what is not synced can be seen, and lost
AGO_US: Final = 2_000_000


def slow_disk() -> None:
    """No bug: every append takes a while."""
    append = LmdbLog.append

    def slowly(self: LmdbLog, drafts: Any) -> None:
        threading.Event().wait(SLOW_S)
        append(self, drafts)

    replace(LmdbLog, "append", slowly)


def answers_before_sync() -> None:
    """A command is answered when it has been decided."""
    slow_disk()

    def at_once(self: Committer, sequence: int, future: asyncio.Future[None]) -> None:
        when_durable(self, sequence, future)
        if not future.done():
            future.set_result(None)

    when_durable = Committer.when_durable
    replace(Committer, "when_durable", at_once)


def shows_what_is_not_durable() -> None:
    """A question is answered from memory, whatever a crash could take back."""
    slow_disk()

    async def at_once(self: Engine, account_id: int) -> Account:
        return self.account(account_id)

    replace(Engine, "settle_account", at_once)


def forgets_keys() -> None:
    """Keys are looked for among those that no checkpoint has, and nowhere else."""

    def recent(self: Memory, key: bytes) -> int | None:
        return self.find_recent(key)

    replace(Memory, "find_key", recent)


def answers_for_a_while_ago() -> None:
    """Now is what it was a moment ago."""

    def ago(self: Engine, instant_us: int, field: str) -> int:
        if not instant_us:
            instant_us = max(self._instants._wall.now_us(), self._clock.last_us) - AGO_US
        return settle(self, instant_us, field)

    settle = Engine.settle_instant
    replace(Engine, "settle_instant", ago)


def does_not_move_past() -> None:
    """An instant that was answered for is not over for what is posted later."""

    def still(self: HybridClock, instant_us: int) -> bool:
        return instant_us <= self._clock.now_us() + self._ahead_max_us

    replace(HybridClock, "advance_past", still)


def forgets_to_log_prepared() -> None:
    """What a participant has prepared is in its memory, and in no log."""

    def and_forget(*args: Any) -> Any:
        ledger, recovery = recover(*args)
        ForgetsToLogPrepared.install(ledger)
        return ledger, recovery

    recover = startup.recover
    replace(startup, "recover", and_forget)


def says_completed_too_soon() -> None:
    """What is committed is answered COMPLETED, also when not everybody has posted it."""

    def completed(self: two_phase.Transaction, status: Status) -> bytes:
        del status
        return in_time(self, Status.COMPLETED)

    in_time = two_phase.Transaction._completed
    replace(two_phase.Transaction, "_completed", completed)


def takes_silence_for_no() -> None:
    """When the home does not answer in time, nothing is said to have happened."""
    replace(two_phase, "NOT_KNOWN_IN_TIME", NOT_IN_TIME)


def takes_lost_answers_for_no() -> None:
    """What a shard may have done is said not to have happened, when its answer was lost."""

    def definite(self: Fault, *args: Any, **kwargs: Any) -> None:
        init(self, *args, **{**kwargs, "indefinite": False})

    init = Fault.__init__
    replace(Fault, "__init__", definite)


def replace(owner: object, name: str, value: object) -> None:
    """Puts something in the place of the real thing."""
    assert hasattr(owner, name)
    setattr(owner, name, value)


@dataclass(frozen=True)
class Mutant:
    """A bug.

    Attributes:
        room: whose processes have it.
        install: plants it.
        kinds: of faults under which it shows; see `faults.COURSES`.
    """

    room: str
    install: Callable[[], None]
    kinds: tuple[str, ...]


_KILLS: Final = ("kill a shard node",)
_STALLS: Final = ("stall a process",)
_CALM: Final = ("stop a process",)  # hardly a fault at all

MUTANTS: Final = {
    "answer before the sync": Mutant("shard_node", answers_before_sync, _KILLS),
    "show what is not durable": Mutant("shard_node", shows_what_is_not_durable, _KILLS),
    "forget keys with every checkpoint": Mutant("shard_node", forgets_keys, _CALM),
    "read as of a moment ago": Mutant("shard_node", answers_for_a_while_ago, _CALM),
    "post at an instant that was answered": Mutant("shard_node", does_not_move_past, _CALM),
    "forget to log PREPARED": Mutant("shard_node", forgets_to_log_prepared, _KILLS),
    "say COMPLETED before all have posted": Mutant("coordinator", says_completed_too_soon, _STALLS),
    "say nothing happened when the home is silent": Mutant(
        "coordinator", takes_silence_for_no, _STALLS
    ),
    "say nothing happened when an answer is lost": Mutant(
        "router", takes_lost_answers_for_no, _STALLS
    ),
}
"""Every planted bug, by what it does."""
