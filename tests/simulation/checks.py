"""What must be true of every answer at the moment it is given, and of everything at the end."""

from __future__ import annotations

from typing import TYPE_CHECKING

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
    from collections.abc import Iterable

    from tests.simulation.books import ShardBooks
    from tests.simulation.clients import Intent
    from tests.simulation.coordinators import Coordinator, Execution
    from tests.simulation.shards import Shard


class Checks:
    """Knows all shards; see the module's docstring.

    Args:
        shards: by id.
    """

    def __init__(self, shards: dict[int, Shard]) -> None:
        self._shards = shards

    # --- answers --------------------------------------------------------------------------------

    def answered(self, it: Execution) -> None:
        """A coordinator answers."""
        self._check_answer(it.intent, it.result)

    def answered_by_shard(self, intent: Intent, result: bytes) -> None:
        """A shard answers by itself."""
        self._check_answer(intent, result)

    def _check_answer(self, intent: Intent, result: bytes) -> None:
        """What it says is durable, and visible, from now on: a log only grows."""
        status, reason, *_ = GROUP_RESULT.unpack(result)
        if status == Status.COMPLETED:
            for shard_id, body, incoming in intent.legs():
                posted = self._shards[shard_id].durable_books().posted
                self._must(
                    (body, incoming) in posted,
                    f"{intent.name} was answered COMPLETED and is not posted on shard {shard_id}",
                )
        if status == Status.COMMITTED_POSTING:
            self._must(not self._recorded_reason(intent), f"{intent.name} was not committed")
        if status == Status.REFUSED and is_recorded(RefusalReason(reason)):
            recorded = self._recorded_reason(intent)
            self._must(recorded == reason, f"{intent.name} was refused for another reason")

    def _recorded_reason(self, intent: Intent) -> int:
        known = self._shards[intent.home].durable_books().keys.get(intent.key)
        self._must(known is not None, f"{intent.name} has no durable record")
        assert known
        what = f"{intent.name}: another body is recorded under its key"
        self._must(known.bodies == b"".join(intent.bodies), what)
        return known.reason

    # --- the end --------------------------------------------------------------------------------

    def at_the_end(self, intents: list[Intent], coordinators: Iterable[Coordinator]) -> None:
        """All promises, once nothing is in doubt."""
        for shard in self._shards.values():
            shard.sync_now()
            shard.books.compare(shard.ledger)
            self._check_nothing_reserved(shard)
            self._check_fold(shard)
            shard.crash()
            shard.start()  # which compares what it recovers with the log
        books = {each.shard_id: each.books for each in self._shards.values()}
        self._check_atomicity(books, intents)
        self._check_clearing(books)
        for intent in intents:
            self._check_results(books[intent.home], intent)
        committed = {each for one in books.values() for each in one.committed}
        for coordinator in coordinators:
            for it in coordinator.executions:
                self._check_definite(it, committed)

    def _check_atomicity(self, books: dict[int, ShardBooks], intents: list[Intent]) -> None:
        by_bodies = {b"".join(each.bodies): each for each in intents}
        expected: dict[tuple[int, bytes], list[tuple[bytes, bool]]] = {}
        for home, one in books.items():
            for transaction_id, known in one.committed.items():
                intent = by_bodies.get(known.bodies)
                self._must(intent is not None, "something was committed that nobody wanted")
                assert intent
                self._must(intent.home == home, f"{intent.name} was decided by a stranger")
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
            self._must(sorted(want) == sorted(have), what)
        committed = {each for one in books.values() for each in one.committed}
        for one in books.values():
            self._must(not one.aborted & committed, "a transaction was committed and aborted")

    def _check_clearing(self, books: dict[int, ShardBooks]) -> None:
        for shard_id, one in books.items():
            for (peer, currency), position in one.clearing.items():
                other = books[peer].clearing[shard_id, currency]
                what = f"between {shard_id} and {peer} is {position} and {other}"
                self._must(position + other == 0, what)

    def _check_results(self, home: ShardBooks, intent: Intent) -> None:
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
            self._must(holds, f"{intent.name} was answered {Status(status).name}, {reason}")

    def _check_definite(self, it: Execution, committed: set[bytes]) -> None:
        """A definite fault means that nothing happened; so does a refusal."""
        if not it.result:
            return
        status, _, _, _, _, indefinite, *_ = GROUP_RESULT.unpack(it.result)
        if status == Status.REFUSED or (status == Status.FAULT and not indefinite):
            happened = committed & set(it.transaction_ids)
            self._must(not happened, f"{it.name} was said not to have happened")

    def _check_nothing_reserved(self, shard: Shard) -> None:
        for account in shard.ledger.memory.accounts.values():
            self._must(not account.pins, f"account {account.account_id} stays pinned")
            for balance in account.balances.values():
                reserved = balance.reserved_incoming, balance.reserved_outgoing
                self._must(reserved == (0, 0), f"account {account.account_id}: {reserved} stays")

    def _check_fold(self, shard: Shard) -> None:
        """Promise 7: the state, taken in many checkpoints, is what the log amounts to."""
        shard.checkpoint_now()
        state = MemoryState()
        store, writer = Store(state, shard.log), LocalStateWriter(state, shard.log)
        ledger, _ = recover(shard.identity, store, Limits(), writer)
        checkpoint_now(shard.identity, ledger, store, writer)
        for table in TABLES:
            have, want = vars(shard.state)[f"_{table}"], vars(state)[f"_{table}"]
            self._must(have == want, f"the state's {table} are not the fold of the log")

    def _must(self, holds: bool, what: str) -> None:  # noqa: FBT001 - it reads as an assertion
        if not holds:
            raise Violation(what)
