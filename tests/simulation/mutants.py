"""Parts that are wrong on purpose: each breaks one rule of the protocol, and must be noticed.

Each extends the real part and changes as little as the mistake would.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final

from librt.strings import BytesWriter

from cluster.packed import ANSWER, VOTE, Fate, Outcome, Vote
from cluster.refusals import RefusalReason
from coordinator.states import State
from shard_node.participant import Participant
from tests.simulation.coordinators import Coordinator
from tests.simulation.scenario import Parts
from tests.simulation.shards import Shard

if TYPE_CHECKING:
    from collections.abc import Callable

    from shard_node.ledger import Ledger
    from shard_node.legs import Leg
    from shard_node.transactions import Request
    from tests.simulation.coordinators import Execution


class CommitsBeforeAllVotes(Coordinator):
    """The first YES counts for everybody; what comes later is not looked at."""

    def voted(self, it: Execution, shard: int, vote: tuple[int, int, int]) -> None:
        if it.item.state is not State.PREPARING or shard not in it.item._awaited:
            return
        for each in list(it.item._awaited) if vote[0] == Vote.YES else [shard]:
            super().voted(it, each, vote)

    def unreached(self, it: Execution, shard: int) -> None:
        if it.item.state is State.PREPARING and shard in it.item._awaited:
            super().unreached(it, shard)


class AnswersBeforeSync(Shard):
    """The home answers COMMIT before its block is durable."""

    _is_hasty = False

    def commit_home(
        self, request: Request, vote: tuple[int, int, int], answer: Callable[[bytes], None]
    ) -> None:
        self._is_hasty = True
        super().commit_home(request, vote, answer)
        self._is_hasty = False

    def answer_when_durable(self, answer: Callable[[], None]) -> None:
        super().answer_when_durable((lambda: None) if self._is_hasty else answer)
        if self._is_hasty:
            answer()


class Mutant(Participant):
    """The real participant, but for one method."""

    @classmethod
    def install(cls, ledger: Ledger) -> None:
        """Takes the place of a ledger's participant."""
        it = ledger.participant
        parts = it._memory, it._block, it._transactions, it._poster, it._groups, it._reader
        ledger.participant = cls(it._shard_id, *parts)


class _ForgetfulBlock:
    """In place of a block: nothing stays in it."""

    def __init__(self, stamp_us: int) -> None:
        self.stamp_us = stamp_us
        self.records = BytesWriter()

    def next_sequence(self) -> int:
        return 0

    def add_to_heap(self, data: bytes) -> int:
        return 0


class _ForgetfulTable:
    """In place of a table of transactions: nothing has ever ended."""

    def __init__(self, table: Any) -> None:
        self._table = table

    def __getattr__(self, name: str) -> Any:
        return getattr(self._table, name)

    def ended(self, transaction_id: bytes) -> None:
        return None


class ForgetsToLogPrepared(Mutant):
    """What it has prepared is in memory, and in no log."""

    def prepare(self, request: Request, *, room: bool) -> bytes:
        block: Any = self._block
        stand_in: Any = _ForgetfulBlock(block.stamp_us)
        self._block = stand_in
        vote = super().prepare(request, room=room)
        self._block = block
        return vote


class ResolvesWithoutRecording(Mutant):
    """What it tells to be aborted is recorded nowhere, and may still be committed."""

    _is_resolving = False

    def resolve(self, transaction_id: bytes, deadline_us: int) -> bytes:
        self._is_resolving = True
        resolution = super().resolve(transaction_id, deadline_us)
        self._is_resolving = False
        return resolution

    def _record_aborted(self, transaction_id: bytes, deadline_us: int) -> None:
        if not self._is_resolving:
            super()._record_aborted(transaction_id, deadline_us)


class PostsTwice(Mutant):
    """It does not remember what has ended: a second PREPARE and COMMIT post once more."""

    def prepare(self, request: Request, *, room: bool) -> bytes:
        table: Any = self._transactions
        stand_in: Any = _ForgetfulTable(table)
        self._transactions = stand_in
        vote = super().prepare(request, room=room)
        self._transactions = table
        return vote


class AnswersKeyForFate(Mutant):
    """An attempt that lost hears that the key is committed, and takes it for its own."""

    def commit_home(
        self,
        request: Request,
        vote: tuple[int, int, int],
        *,
        room: bool = True,
        stored: dict[bytes, int] | None = None,
    ) -> bytes:
        answer = super().commit_home(request, vote, room=room, stored=stored)
        fields = list(ANSWER.unpack(answer))
        if vote[0] == Vote.YES and fields[:2] == [Fate.ABORTED, Outcome.COMMITTED]:
            fields[0], fields[6] = Fate.COMMITTED, True
        return ANSWER.pack(*fields)


class RefusesForDoubt(Mutant):
    """What only a reservation stands in the way of is refused for good."""

    def prepare(self, request: Request, *, room: bool) -> bytes:
        vote = super().prepare(request, room=room)
        if room and VOTE.unpack(vote)[0] == Vote.BUSY:
            return VOTE.pack(Vote.NO, RefusalReason.INSUFFICIENT_FUNDS, 0)
        return vote


class CreditsWithoutHeadroom(Mutant):
    """It reserves money for what accounts pay, and no room for what they are paid."""

    def _enter_prepared(self, request: Request, legs: list[Leg], since_us: int) -> None:
        super()._enter_prepared(request, legs, since_us)
        table, transaction_id = self._transactions.prepared, request.header.transaction_id
        prepared = table[transaction_id]
        for each in prepared.reservations:
            each.balance.reserved_incoming -= each.incoming
        reservations = tuple(replace(each, incoming=0) for each in prepared.reservations)
        table[transaction_id] = replace(prepared, reservations=reservations)


MUTANTS: Final = {
    "commit before all votes": Parts(coordinator=CommitsBeforeAllVotes),
    "forget to log PREPARED": Parts(install=ForgetsToLogPrepared.install),
    "resolve to abort without recording it": Parts(install=ResolvesWithoutRecording.install),
    "post twice on a duplicated PREPARE and COMMIT": Parts(install=PostsTwice.install),
    "answer before home's sync": Parts(shard=AnswersBeforeSync),
    "answer the key's outcome to an attempt that lost": Parts(install=AnswersKeyForFate.install),
    "record a refusal that only an in-doubt attempt caused": Parts(install=RefusesForDoubt.install),
    "prepare credits without headroom": Parts(install=CreditsWithoutHeadroom.install),
}
"""Every planted bug, by what it does."""
