"""The shard's half of two-phase commit, pure: as participant it prepares, as home it decides.

Theory of operation. A transaction's *home* is the shard of its first source; its log holds the
decision. The other shards are *participants*.

- `prepare` (participant) checks its legs beside everything reserved, reserves what they need, and
  records PREPARED. From then on the legs can be posted whatever happens in between.
- `commit_home` (home) looks up the key, then its own check of its own legs, and in one block posts
  them behind a COMMITTED record. The sync of that block is the commit point. The home is never
  prepared, so nothing of it is reserved in vain.
- `commit_prepared` (participant) posts what was prepared. Not prepared means posted already: a
  COMMIT exists only once this participant has voted YES.
- `abort` (participant) drops what was prepared, and remembers the id, so that a late PREPARE of it
  is not prepared for ever.
- `resolve` (home) tells how a transaction ended; past the deadline an undecided one is recorded
  ABORTED by that very question, so that no late COMMIT can contradict the answer.

Why a fate cannot change: COMMITTED is recorded with the legs and found by its key for ever. ABORTED
is told only where nothing can turn it over later: the key has another outcome (for ever), or the
deadline is past by this log's clock (which never goes back, also across restarts), or an ABORTED
record says so until then.

Every transition stands in one of the methods above; `replay` applies their records and decides
nothing. Callers sync before they answer.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from librt.strings import read_i64_le

from cluster.packed import (
    BODY_BYTES,
    DECISION_BYTES,
    GROUP_SIZE_AT,
    KEY_BYTES,
    KEY_SOURCE,
    MEMBER_BYTES,
    RESOLUTION,
    TRANSACTION_ID_BYTES,
    VOTE,
    VOTE_BYTES,
    Fate,
    Outcome,
    Vote,
)
from cluster.refusals import RefusalReason, is_recorded
from shard_node.legs import (
    check_legs,
    legs_of,
    posting_time_us,
    release,
    reserve,
    shards_of,
    split_members,
)
from shard_node.recorded import first_difference, read_recorded
from shard_node.records import (
    COMMITTED,
    ENDED,
    LEG,
    PREPARED,
    RecordKind,
    write_committed,
    write_prepared,
)
from shard_node.replaying import (
    check_ids,
    check_participants,
    committed_members,
    damaged,
    heap_part,
    prepared_content,
    wrong_with_prepared,
)
from shard_node.transactions import (
    DEADLINE_AHEAD_MAX_US,
    DECIDED_MAX,
    NO_TRANSACTION,
    PREPARED_MAX,
    Decided,
    Header,
    Prepared,
    Request,
    StoredPrepared,
    pack_answer,
)

if TYPE_CHECKING:
    from shard_node.groups import Groups
    from shard_node.legs import Leg, Member
    from shard_node.memory import Memory
    from shard_node.open_block import OpenBlock
    from shard_node.posting import Poster
    from shard_node.recorded import Recorded, RecordReader
    from shard_node.records import BlockDraft
    from shard_node.transactions import Transactions

_YES = VOTE.pack(Vote.YES, 0, 0)
_BUSY = VOTE.pack(Vote.BUSY, 0, 0)
_LATE = VOTE.pack(Vote.LATE, 0, 0)

# What every transaction needs of the enumerations, looked up once: 0.2 µs each time otherwise.
_NO: Final = int(Vote.NO)
_FATE_COMMITTED: Final = int(Fate.COMMITTED)
_OUTCOME_COMMITTED: Final = int(Outcome.COMMITTED)


class Participant:
    """Drives one shard's transactions.

    Args:
        shard_id: this shard.
        memory, block, transactions: what it changes.
        poster: posts legs.
        groups: records refusals.
        reader: reads what is recorded under a key.
    """

    def __init__(
        self,
        shard_id: int,
        memory: Memory,
        block: OpenBlock,
        transactions: Transactions,
        poster: Poster,
        groups: Groups,
        reader: RecordReader,
    ) -> None:
        self._shard_id = shard_id
        self._memory = memory
        self._block = block
        self._transactions = transactions
        self._poster = poster
        self._groups = groups
        self._reader = reader
        self._alone: dict[int, tuple[int, ...]] = {}  # each shard as the only participant

    # --- commands -------------------------------------------------------------------------------

    def prepare_all(self, requests: list[Request], *, room: bool) -> bytes:
        """`prepare`, one after the other; returns the votes."""
        return b"".join([self.prepare(each, room=room) for each in requests])

    def prepare(self, request: Request, *, room: bool) -> bytes:
        """Votes; `room` = there is space for new work. Returns a packed vote."""
        header, table, now_us = request.header, self._transactions, self._block.stamp_us
        if header.transaction_id in table.prepared:
            return _YES
        if table.ended(header.transaction_id) is not None or header.deadline_us <= now_us:
            return _LATE
        if header.deadline_us > now_us + DEADLINE_AHEAD_MAX_US:
            return _LATE
        legs = legs_of(request.members, request.metadata, self._shard_id)
        verdict = check_legs(self._memory, legs, now_us)
        if verdict.refusal is not None:
            return VOTE.pack(_NO, verdict.refusal, verdict.index)
        if verdict.busy or not room or len(table.prepared) >= PREPARED_MAX:
            return _BUSY

        # Point of no return.
        offset = self._block.add_to_heap(request.members + request.metadata)
        length = len(request.members) + len(request.metadata)
        header.write(self._block.records)
        write_prepared(self._block.records, offset, length)
        self._block.next_sequence()
        self._enter_prepared(request, legs, now_us)
        return _YES

    def commit_home_all(self, requests: list[Request], votes: bytes, *, room: bool) -> bytes:
        """`commit_home`, one after the other, keys looked for at once; returns the answers."""
        stored = self._memory.find_stored([each.members[:KEY_BYTES] for each in requests])
        answers: list[bytes] = []
        at = 0
        for each in requests:
            vote = (votes[at], votes[at + 1], votes[at + 2])
            at += VOTE_BYTES
            answers.append(self.commit_home(each, vote, room=room, stored=stored))
        return b"".join(answers)

    def commit_home(
        self,
        request: Request,
        vote: tuple[int, int, int],
        *,
        room: bool = True,
        stored: dict[bytes, int] | None = None,
    ) -> bytes:
        """Decides a transaction; returns a packed answer.

        Args:
            request: with all members.
            vote: the participants' (Vote, RefusalReason, index), YES or NO.
            room: whether there is space for new work: what the home posts was not promised before.
            stored: what the latest checkpoint knows of its key; None = it was not asked yet.
        """
        header, table, now_us = request.header, self._transactions, self._block.stamp_us
        key = request.members[:KEY_BYTES]
        sequence = self._memory.find_key(key, stored)
        if sequence is not None:
            return self._answer_known(request, read_recorded(self._reader, sequence, key))
        if header.transaction_id in table.prepared:  # of the same name, and another home decides it
            return pack_answer(Fate.ABORTED, Outcome.NONE)
        if vote[0] == _NO:
            return self._refuse(request, RefusalReason(vote[1]), vote[2])
        is_over = table.ended(header.transaction_id) is not None or header.deadline_us <= now_us
        if is_over or not room:
            self.abort(header.transaction_id, header.deadline_us)
            return pack_answer(Fate.ABORTED, Outcome.NONE)
        legs = legs_of(request.members, request.metadata, self._shard_id)
        verdict = check_legs(self._memory, legs, now_us)
        if verdict.refusal is not None:
            return self._refuse(request, verdict.refusal, verdict.index)
        if verdict.busy or len(table.decided) >= DECIDED_MAX:
            self.abort(header.transaction_id, header.deadline_us)
            return pack_answer(Fate.ABORTED, Outcome.NONE)

        # Point of no return: once this block is durable, the transaction has happened.
        size = header.members_count
        participants = self._participants(request.members)
        self._memory.add_key(key, self._record_committed(request, legs[0].body, participants))
        table.add_decided(Decided(header, now_us, key, size, participants))
        source = legs[0].account or self._memory.account(legs[0].account_id)
        assert source, "it was checked"
        time_us = posting_time_us(source, legs[0].import_us, now_us)
        self._poster.post(legs, header.transaction_id, header.first_source, now_us)
        self._groups.counts.completed += size
        held = source.balance(legs[0].currency)
        assert held, "a leg was posted to it"
        return pack_answer(
            _FATE_COMMITTED,
            _OUTCOME_COMMITTED,
            time_us=time_us,
            minor=held.minor,
            decided_us=now_us,
            transaction_id=header.transaction_id,
            unposted=True,
        )

    def commit_prepared_all(self, decisions: bytes) -> bytes:
        """`commit_prepared`, one after the other; returns nothing."""
        for at in range(0, len(decisions), DECISION_BYTES):
            end = at + TRANSACTION_ID_BYTES
            self.commit_prepared(decisions[at:end], read_i64_le(decisions, end))
        return b""

    def commit_prepared(self, transaction_id: bytes, decided_us: int) -> None:
        """Posts what was prepared; nothing when it was posted before."""
        prepared = self._transactions.prepared.get(transaction_id)
        if prepared is None:
            return
        self._end_prepared(prepared, decided_us, self._block.stamp_us)
        first_source = prepared.header.first_source
        self._poster.post(prepared.legs, transaction_id, first_source, decided_us)

    def abort(self, transaction_id: bytes, deadline_us: int) -> None:
        """Drops what was prepared, if it was; it will not be prepared or decided any more.

        Nothing happens when it has ended, or was decided, already.
        """
        table = self._transactions
        if transaction_id in table.decided or table.ended(transaction_id) is not None:
            return
        if prepared := table.prepared.get(transaction_id):
            deadline_us = prepared.header.deadline_us
        # One that lies further ahead is not prepared before this id may be forgotten.
        deadline_us = min(deadline_us, self._block.stamp_us + DEADLINE_AHEAD_MAX_US)
        self._record_aborted(transaction_id, deadline_us)

    def resolve(self, transaction_id: bytes, deadline_us: int) -> bytes:
        """Tells how a transaction ended; ends it when it is too late for it to be decided.

        Returns a packed resolution.
        """
        decided = self._transactions.decided.get(transaction_id)
        if decided is not None:
            return RESOLUTION.pack(Fate.COMMITTED, decided.decided_us)
        ended_us = self._transactions.ended(transaction_id)
        if ended_us is not None:
            return RESOLUTION.pack(Fate.COMMITTED if ended_us else Fate.ABORTED, ended_us)
        if deadline_us > self._block.stamp_us or transaction_id in self._transactions.prepared:
            return RESOLUTION.pack(Fate.UNDECIDED, 0)  # prepared here, it has another home
        self._record_aborted(transaction_id, deadline_us)
        return RESOLUTION.pack(Fate.ABORTED, 0)

    def finish(self, transaction_ids: list[bytes]) -> None:
        """Forgets decisions that every participant has posted."""
        known = [each for each in transaction_ids if each in self._transactions.decided]
        if not known:
            return
        ids = b"".join(known)
        offset = self._block.add_to_heap(ids)
        effects = PREPARED.pack(RecordKind.FINISHED, offset, len(ids))
        self._block.append(ENDED.pack(NO_TRANSACTION, 0, 0, 0), effects)
        self._apply_finished(ids, self._block.stamp_us)

    # --- replay ---------------------------------------------------------------------------------

    def apply_prepared(self, record: bytes, sequence: int, block: BlockDraft) -> None:
        """Applies PREPARED."""
        content = prepared_content(sequence, record, block.heap)
        wrong = self.restore_prepared(StoredPrepared(content[0], block.time_us, *content[1:]))
        if wrong is not None:
            raise damaged(sequence, wrong)

    def restore_prepared(self, stored: StoredPrepared) -> str | None:
        """Enters what a record or a row says was prepared; says why it cannot have been."""
        wrong = wrong_with_prepared(stored, self._shard_id, self._memory)
        if wrong is None and stored.header.transaction_id in self._transactions.prepared:
            wrong = "is of a transaction that is prepared already"
        if wrong is not None:
            return wrong
        request = Request(stored.header, stored.members, stored.metadata)
        legs = legs_of(request.members, request.metadata, self._shard_id)
        self._enter_prepared(request, legs, stored.since_us)
        return None

    def recall_ended(self, record: bytes, block: BlockDraft) -> None:
        """Remembers, without applying it again, that a record ended a transaction."""
        kind, stamp_us = record[BODY_BYTES], block.time_us
        if kind in (RecordKind.LEG_OUTGOING, RecordKind.LEG_INCOMING):
            self._poster.recall_record(record)
            decided_us, transaction_id = LEG.unpack_from(record, BODY_BYTES)[6:8]
            of_none = transaction_id == NO_TRANSACTION
            if not of_none and transaction_id not in self._transactions.decided:
                until_us = stamp_us + DEADLINE_AHEAD_MAX_US
                self._transactions.recall(transaction_id, until_us, decided_us)
        elif kind == RecordKind.ABORTED:
            transaction_id, deadline_us, _, _ = ENDED.unpack_from(record)
            self._transactions.recall(transaction_id, max(deadline_us, stamp_us), 0)

    def apply_committed(self, record: bytes, sequence: int, block: BlockDraft) -> None:
        """Applies COMMITTED; its legs are records of their own."""
        key = record[:KEY_BYTES]
        fields = COMMITTED.unpack_from(record, BODY_BYTES)
        _, size, participant, _, transaction_id, deadline_us = fields
        members = committed_members(sequence, record, block.heap)
        participants = self._shards_of(members) if members else (participant,)
        check_participants(sequence, participants, self._shard_id)
        first_source = KEY_SOURCE.unpack_from(key, KEY_BYTES - KEY_SOURCE.size)[0]
        count = max(size, 1)
        header = Header(transaction_id, deadline_us, first_source, self._shard_id, count)
        self._memory.add_key(key, sequence)
        self._transactions.add_decided(Decided(header, block.time_us, key, count, participants))

    def apply_leg(self, record: bytes, sequence: int, block: BlockDraft) -> None:
        """Applies a leg, and ends what was prepared when it is that transaction's first."""
        decided_us, transaction_id = LEG.unpack_from(record, BODY_BYTES)[6:8]
        if prepared := self._transactions.prepared.get(transaction_id):
            self._end_prepared(prepared, decided_us, block.time_us)
        self._poster.apply_record(record, sequence, block)

    def check_local_legs(self, block: BlockDraft) -> None:
        """Raises unless the legs of a block that stay on this shard come to zero (promise 1)."""
        sums = self._poster.local_minor
        if any(sums.values()):
            raise damaged(block.last_sequence, f"ends a block whose own legs come to {sums}")
        sums.clear()

    def apply_aborted(self, record: bytes, stamp_us: int) -> None:
        """Applies ABORTED."""
        transaction_id, deadline_us, _, _ = ENDED.unpack_from(record)
        self._apply_aborted(transaction_id, deadline_us, stamp_us)

    def apply_finished(self, record: bytes, sequence: int, block: BlockDraft) -> None:
        """Applies FINISHED."""
        _, offset, length = PREPARED.unpack_from(record, BODY_BYTES)
        ids = heap_part(sequence, block.heap, offset, length)
        check_ids(sequence, ids)
        self._apply_finished(ids, block.time_us)

    # --- small parts ----------------------------------------------------------------------------

    def _participants(self, members: bytes) -> tuple[int, ...]:
        if len(members) != MEMBER_BYTES:
            return self._shards_of(split_members(members, b""))
        # As nearly always. The home is the source's shard; one tuple for each other one.
        _, shard = shards_of(members, 0)
        participants = self._alone.get(shard)
        if participants is None:
            participants = self._alone[shard] = (shard,)
        return participants

    def _shards_of(self, members: list[Member]) -> tuple[int, ...]:
        """The other shards of a transaction whose home this is."""
        shards = {each.source_shard for each in members}
        shards |= {each.destination_shard for each in members}
        return tuple(sorted(shards - {self._shard_id}))

    def _enter_prepared(self, request: Request, legs: list[Leg], since_us: int) -> None:
        reservations = reserve(self._memory, legs, self._shard_id)
        prepared = Prepared(
            request.header, since_us, request.members, request.metadata, tuple(legs), reservations
        )
        self._transactions.add_prepared(prepared)

    def _end_prepared(self, prepared: Prepared, decided_us: int, now_us: int) -> None:
        header = prepared.header
        release(self._memory, prepared.reservations)
        self._transactions.end(header.transaction_id, header.deadline_us, decided_us, now_us)

    def _record_committed(
        self, request: Request, first_body: bytes, participants: tuple[int, ...]
    ) -> int:
        """Records the decision; the legs' records follow."""
        size = first_body[GROUP_SIZE_AT]
        content = request.members + request.metadata if size else request.metadata
        write_committed(
            self._block.records,
            first_body,
            size,
            0 if size else participants[0],
            self._block.add_to_heap(content) if content else 0,
            request.header.transaction_id,
            request.header.deadline_us,
        )
        return self._block.next_sequence()

    def _refuse(self, request: Request, reason: RefusalReason, index: int) -> bytes:
        """Ends a transaction by a refusal: of highest precedence of the participants' and ours.

        One that leaves no record might not be found again by a late copy of the same message.
        """
        header = request.header
        legs = legs_of(request.members, request.metadata, self._shard_id)
        verdict = check_legs(self._memory, legs, self._block.stamp_us)
        if verdict.refusal is not None:
            reason, index = min((reason, index), (verdict.refusal, verdict.index))
        if not is_recorded(reason):
            self.abort(header.transaction_id, header.deadline_us)
            return pack_answer(Fate.ABORTED, Outcome.REFUSED, reason=reason, index=index)
        members = split_members(request.members, request.metadata)
        time_us, minor = self._groups.record_refusal(members, reason, index)
        return pack_answer(
            Fate.ABORTED, Outcome.REFUSED, reason=reason, index=index, time_us=time_us, minor=minor
        )

    def _answer_known(self, request: Request, known: Recorded) -> bytes:
        """The key has an outcome already: that of this very transaction, or another's."""
        members = split_members(request.members, request.metadata)
        bodies = b"".join(each.body for each in members)
        if known.transaction_id != request.header.transaction_id:
            self._groups.counts.repeated += len(members)
        if bodies != known.bodies or request.metadata != known.metadata:
            differing = first_difference(known, bodies, request.metadata)
            reason = RefusalReason.KEY_REUSED
            return pack_answer(Fate.ABORTED, Outcome.REFUSED, reason=reason, differing=differing)
        if known.reason:
            return pack_answer(
                Fate.ABORTED,
                Outcome.REFUSED,
                reason=known.reason,
                index=known.index,
                repeat=True,
                time_us=known.time_us,
                minor=known.source_minor,
            )
        mine = known.transaction_id == request.header.transaction_id
        return pack_answer(
            Fate.COMMITTED if mine else Fate.ABORTED,
            Outcome.COMMITTED,
            repeat=not mine,
            time_us=known.time_us,
            minor=known.source_minor,
            decided_us=known.decided_us,
            transaction_id=known.transaction_id or NO_TRANSACTION,
            unposted=known.transaction_id in self._transactions.decided,
        )

    def _record_aborted(self, transaction_id: bytes, deadline_us: int) -> None:
        effects = PREPARED.pack(RecordKind.ABORTED, 0, 0)
        self._block.append(ENDED.pack(transaction_id, deadline_us, 0, 0), effects)
        self._apply_aborted(transaction_id, deadline_us, self._block.stamp_us)

    def _apply_aborted(self, transaction_id: bytes, deadline_us: int, now_us: int) -> None:
        if prepared := self._transactions.prepared.get(transaction_id):
            release(self._memory, prepared.reservations)
        self._transactions.end(transaction_id, deadline_us, 0, now_us)

    def _apply_finished(self, ids: bytes, now_us: int) -> None:
        for at in range(0, len(ids), TRANSACTION_ID_BYTES):
            transaction_id = ids[at : at + TRANSACTION_ID_BYTES]
            if decided := self._transactions.decided.get(transaction_id):
                deadline_us = decided.header.deadline_us
                self._transactions.end(transaction_id, deadline_us, decided.decided_us, now_us)
