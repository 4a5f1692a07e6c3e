"""What must be true of every answer at the moment it is given, and of everything at the end."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from cluster.packed import GROUP_RESULT
from cluster.refusals import RefusalReason, is_recorded
from coordinator.actions import Status
from shard_node.checkpointer import LocalStateWriter
from shard_node.limits import Limits
from shard_node.memory_state import MemoryState
from shard_node.startup import checkpoint_now, recover
from shard_node.state import TABLES
from shard_node.store import Store
from tests.simulation.world import Violation

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from shard_node.ledger import Ledger
    from shard_node.log import Log
    from shard_node.records import LogIdentity
    from tests.simulation.books import ShardBooks
    from tests.simulation.clients import Intent
    from tests.simulation.coordinators import Coordinator, Execution
    from tests.simulation.shards import Shard


class HasBooks(Protocol):
    """A shard, as answers are judged by it."""

    def durable_books(self) -> ShardBooks:
        """The books as its log alone tells them."""
        ...


class AnswerChecks:
    """What answers and books must be, whatever runs the shards.

    Args:
        shards: by id.
    """

    def __init__(self, shards: Mapping[int, HasBooks]) -> None:
        self._shards = shards

    def answered_by_shard(self, intent: Intent, result: bytes) -> None:
        """A shard answers by itself."""
        self._check_answer(intent, result)

    def _check_answer(self, intent: Intent, result: bytes) -> None:
        """What it says is durable, and visible, from now on: a log only grows."""
        status, reason, *_ = GROUP_RESULT.unpack(result)
        if status == Status.COMPLETED:
            for shard_id, body, incoming in intent.legs():
                posted = self._shards[shard_id].durable_books().posted
                must(
                    (body, incoming) in posted,
                    f"{intent.name} was answered COMPLETED and is not posted on shard {shard_id}",
                )
        if status == Status.COMMITTED_POSTING:
            must(not self._recorded_reason(intent), f"{intent.name} was not committed")
        if status == Status.REFUSED and is_recorded(RefusalReason(reason)):
            recorded = self._recorded_reason(intent)
            must(recorded == reason, f"{intent.name} was refused for another reason")

    def _recorded_reason(self, intent: Intent) -> int:
        known = self._shards[intent.home].durable_books().keys.get(intent.key)
        must(known is not None, f"{intent.name} has no durable record")
        assert known
        what = f"{intent.name}: another body is recorded under its key"
        must(known.bodies == b"".join(intent.bodies), what)
        return known.reason

    def check_atomicity(self, books: dict[int, ShardBooks], intents: list[Intent]) -> None:
        """Every leg of what a home has committed, once, and no other."""
        by_bodies = {b"".join(each.bodies): each for each in intents}
        expected: dict[tuple[int, bytes], list[tuple[bytes, bool]]] = {}
        for home, one in books.items():
            for transaction_id, known in one.committed.items():
                intent = by_bodies.get(known.bodies)
                must(intent is not None, "something was committed that nobody wanted")
                assert intent
                must(intent.home == home, f"{intent.name} was decided by a stranger")
                for shard_id, body, incoming in intent.legs():
                    expected.setdefault((shard_id, transaction_id), []).append((body, incoming))
        found = {
            (shard_id, transaction_id): legs
            for shard_id, one in books.items()
            for transaction_id, legs in one.legs.items()
        }
        for place in expected.keys() | found.keys():
            want, have = expected.get(place, []), found.get(place, [])
            what = f"shard {place[0]} posted {len(have)} of {len(want)} legs of a transaction"
            must(sorted(want) == sorted(have), what)
        committed = {each for one in books.values() for each in one.committed}
        for one in books.values():
            must(not one.aborted & committed, "a transaction was committed and aborted")

    def check_clearing(self, books: dict[int, ShardBooks]) -> None:
        """What every two shards owe each other cancels."""
        for shard_id, one in books.items():
            for (peer, currency), position in one.clearing.items():
                other = books[peer].clearing[shard_id, currency]
                what = f"between {shard_id} and {peer} is {position} and {other}"
                must(position + other == 0, what)

    def check_results(self, home: ShardBooks, intent: Intent) -> None:
        """Whatever clients heard fits what the home's log says for ever."""
        known = home.keys.get(intent.key)
        is_ours = known is not None and known.bodies == b"".join(intent.bodies)
        for status, reason, *_ in intent.results:
            if status in {Status.COMPLETED, Status.COMMITTED_POSTING}:
                holds = is_ours and known is not None and not known.reason
            elif status == Status.REFUSED and reason == RefusalReason.KEY_REUSED:
                holds = known is not None and not is_ours
            elif status == Status.REFUSED and is_recorded(RefusalReason(reason)):
                holds = is_ours and known is not None and known.reason == reason
            else:
                continue
            must(holds, f"{intent.name} was answered {Status(status).name}, {reason}")


class Checks(AnswerChecks):
    """Knows all shards; see the module's docstring.

    Args:
        shards: by id.
    """

    def __init__(self, shards: dict[int, Shard]) -> None:
        super().__init__(shards)
        self._all = shards

    def answered(self, it: Execution) -> None:
        """A coordinator answers."""
        self._check_answer(it.intent, it.result)

    def at_the_end(self, intents: list[Intent], coordinators: Iterable[Coordinator]) -> None:
        """All promises, once nothing is in doubt."""
        for shard in self._all.values():
            shard.sync_now()
            shard.books.compare(shard.ledger)
            check_nothing_reserved(shard.ledger)
            self._check_fold(shard)
            shard.crash()
            shard.start()  # which compares what it recovers with the log
        books = {each.shard_id: each.books for each in self._all.values()}
        self.check_atomicity(books, intents)
        self.check_clearing(books)
        for intent in intents:
            self.check_results(books[intent.home], intent)
        committed = {each for one in books.values() for each in one.committed}
        for coordinator in coordinators:
            for it in coordinator.executions:
                self._check_definite(it, committed)

    def _check_definite(self, it: Execution, committed: set[bytes]) -> None:
        """A definite fault means that nothing happened; so does a refusal."""
        if not it.result:
            return
        status, _, _, _, _, indefinite, *_ = GROUP_RESULT.unpack(it.result)
        if status == Status.REFUSED or (status == Status.FAULT and not indefinite):
            happened = committed & set(it.transaction_ids)
            must(not happened, f"{it.name} was said not to have happened")

    def _check_fold(self, shard: Shard) -> None:
        shard.checkpoint_now()
        check_fold(shard.identity, shard.state, shard.log)


def check_nothing_reserved(ledger: Ledger) -> None:
    """Nothing is held back for a transaction, and no account is kept in memory for one."""
    for account in ledger.memory.accounts:
        found = ledger.memory.account(account.account_id)
        must(found is account, f"account {account.account_id} is in memory twice")
        must(not account.pins, f"account {account.account_id} stays pinned")
        for balance in account.balances.values():
            reserved = balance.reserved_incoming, balance.reserved_outgoing
            must(reserved == (0, 0), f"account {account.account_id}: {reserved} stays")


def check_fold(identity: LogIdentity, state: MemoryState, log: Log) -> None:
    """Promise 7: a state, taken in many checkpoints up to the log's end, is what the log is."""
    folded = MemoryState()
    store, writer = Store(folded, log), LocalStateWriter(folded, log)
    ledger, _ = recover(identity, store, Limits(), writer)
    checkpoint_now(identity, ledger, store, writer)
    for table in TABLES:
        have, want = vars(state)[f"_{table}"], vars(folded)[f"_{table}"]
        must(have == want, f"the state's {table} are not the fold of the log")


def must(holds: bool, what: str) -> None:  # noqa: FBT001 - it reads as an assertion
    """Raises unless it is so."""
    if not holds:
        raise Violation(what)
