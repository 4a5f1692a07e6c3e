"""Targets: packed calls to shard nodes and coordinators, taken apart and executed.

What gets past the checks is executed on a shard in memory, and must leave it lawful: nothing
raises, sums are zero, and the log that it wrote replays to the same books.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import grpc

from cluster.faults import Fault
from cluster.packed import ANSWER, BATCH_TRANSFERS_MAX, BODY_BYTES, MEMBER, VOTE, Vote
from coordinator.transactions import MalformedRequest, take_apart
from shard_node.batch import Batch
from shard_node.unpacking import (
    check_transfers,
    check_votes,
    decisions_of,
    groups_of,
    records_to_post,
    requests_to_decide,
    requests_to_prepare,
    transaction_ids_of,
)
from tests.hostile.stored import balances_of, check_books
from tests.hostile.target import Target, join_parts, split_parts
from tests.support.crossing import (
    ANN,
    BOB,
    HERE,
    OTHER,
    THIRD,
    Attempt,
    CrossingRig,
    Move,
    pack_bodies,
    two_players,
)
from tests.support.ledgers import BANK

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

_PARTS = 5
_ROUND = 3
"""Calls made with the parts of one input, one after the other: enough to prepare and commit."""


def check_calls(data: bytes) -> None:
    """Calls of `ShardService`, one after the other: executed, or INVALID_ARGUMENT with a field."""
    rig = two_players()
    prepared = rig.attempt(90, Move(OTHER, ANN, 4, metadata=b"in"))
    rig.prepare(prepared)
    rig.seal()
    parts = split_parts(data, _ROUND * _PARTS)
    for at in range(0, len(parts), _PARTS):
        which, *fields = parts[at : at + _PARTS]
        call = _CALLS[(which[0] if which else 0) % len(_CALLS)]
        rig.begin_block()
        try:
            call(rig, *fields)
        except Fault as fault:
            assert fault.code is grpc.StatusCode.INVALID_ARGUMENT, fault
            assert fault.field, fault
        rig.seal()
    check_books(rig.ledger)
    rig.sync()
    was = {each: balances_of(rig.account(each)) for each in rig.opened}
    doubtful = rig.ledger.transactions.prepared.keys(), rig.ledger.transactions.decided.keys()
    rig.crash()
    check_books(rig.ledger)
    assert was == {each: balances_of(rig.account(each)) for each in rig.opened}
    table = rig.ledger.transactions
    assert doubtful == (table.prepared.keys(), table.decided.keys())
    rig.checkpoint()


def _execute(rig: CrossingRig, bodies: bytes, metadata: bytes, *_: bytes) -> None:
    check_transfers(bodies, metadata)
    batch = Batch(bodies, metadata)
    while batch.done < batch.count:
        rig.ledger.execute(batch, batch.count)


def _groups(rig: CrossingRig, bodies: bytes, metadata: bytes, *_: bytes) -> None:
    for group in groups_of(bodies, metadata, HERE):
        rig.ledger.groups.execute(group)


def _prepare(rig: CrossingRig, headers: bytes, members: bytes, metadata: bytes, _: bytes) -> None:
    for request in result_of(requests_to_prepare(headers, members, metadata, HERE)):
        rig.ledger.participant.prepare(request, room=True)


def _commit_home(
    rig: CrossingRig, headers: bytes, members: bytes, metadata: bytes, votes: bytes
) -> None:
    requests = result_of(
        requests_to_decide(headers, members, metadata, HERE, rig.ledger.block.stamp_us)
    )
    check_votes(votes, requests)
    for request, vote in zip(requests, VOTE.iter_unpack(votes), strict=True):
        ANSWER.unpack(rig.ledger.participant.commit_home(request, vote))


def _commit_prepared(rig: CrossingRig, decisions: bytes, *_: bytes) -> None:
    records_to_post(decisions, rig.ledger.transactions)
    found = decisions_of(decisions, "decisions")
    for transaction_id, decided_us in found:
        rig.ledger.participant.commit_prepared(transaction_id, decided_us)


def _abort(rig: CrossingRig, decisions: bytes, *_: bytes) -> None:
    for each in decisions_of(decisions, "transactions"):
        rig.ledger.participant.abort(*each)


def _resolve(rig: CrossingRig, decisions: bytes, *_: bytes) -> None:
    for each in decisions_of(decisions, "transactions"):
        rig.ledger.participant.resolve(*each)


def _finish(rig: CrossingRig, ids: bytes, *_: bytes) -> None:
    rig.ledger.participant.finish(transaction_ids_of(ids, "transaction_ids"))


_CALLS: tuple[Callable[..., None], ...] = (
    *(_execute, _groups, _prepare, _commit_home),
    *(_commit_prepared, _abort, _resolve, _finish),
)


def result_of(coroutine: Coroutine[Any, Any, Any]) -> Any:
    """Run a coroutine that only ever yields its turn."""
    while True:
        try:
            coroutine.send(None)
        except StopIteration as stop:
            return stop.value


def calls_seeds() -> list[bytes]:
    """Every call, well-formed, alone and in the order in which a coordinator makes them."""
    rig = two_players()
    plain = rig.attempt(60, Move(OTHER, ANN, 9, metadata=b"in"))
    group = rig.attempt(61, Move(OTHER, BOB, 2), Move(ANN, THIRD, 1), is_group=True)
    home = rig.attempt(62, Move(ANN, OTHER, 6, metadata=b"out"))
    sale = rig.attempt(63, Move(ANN, OTHER, 1), Move(OTHER, BOB, 1, metadata=b"y"), is_group=True)
    moves = (Move(BANK, ANN, 7, metadata=b"x"), Move(ANN, BOB, 3))
    local = b"".join(pack_bodies(b"g" * 16, moves, is_group=True))
    single = b"".join(pack_bodies(b"t" * 16, moves[:1], is_group=False))
    yes, no = VOTE.pack(Vote.YES, 0, 0), VOTE.pack(Vote.NO, 11, 0)
    calls = {
        "execute": (b"\0", single, b"x", b"", b""),
        "group": (b"\1", local, b"x", b"", b""),
        "prepare": (b"\2", *plain.packed(HERE), b""),
        "prepare group": (b"\2", *group.packed(HERE), b""),
        "prepare both": (b"\2", *_joined(plain, group), b""),
        "home": (b"\3", *home.packed(), yes),
        "home group": (b"\3", *sale.packed(), no),
        "commit": (b"\4", _decision(plain, rig.stamp_us), b"", b"", b""),
        "abort": (b"\5", _decision(plain), b"", b"", b""),
        "resolve": (b"\6", _decision(home), b"", b"", b""),
        "finish": (b"\7", home.transaction_id, b"", b"", b""),
    }
    orders = (
        ("prepare", "commit", "finish"),
        ("prepare both", "abort", "resolve"),
        ("home", "resolve", "finish"),
        ("home group", "prepare group", "group"),
    )
    seeds = [join_parts(call) for call in calls.values()]
    return seeds + [join_parts(part for name in order for part in calls[name]) for order in orders]


def _joined(*attempts: Attempt) -> tuple[bytes, ...]:
    return tuple(map(b"".join, zip(*(each.packed(HERE) for each in attempts), strict=True)))


def _decision(attempt: Attempt, time_us: int = 0) -> bytes:
    return attempt.transaction_id + (time_us or attempt.deadline_us).to_bytes(8, "little")


# --- coordinators -------------------------------------------------------------------------------


def check_members(data: bytes) -> None:
    """A call of `CoordinatorService`: whole transactions, or MalformedRequest with its field."""
    members, metadata = split_parts(data, 2)
    try:
        items = take_apart(members, metadata)
    except MalformedRequest as error:
        assert error.field in ("members", "metadata")
        assert -1 <= error.index < BATCH_TRANSFERS_MAX
        return
    assert b"".join(item.members for item in items) == members
    assert b"".join(item.metadata for item in items) == metadata
    for item in items:
        item.begin(b"i" * 16, 2**62)
        assert item.home not in item.participants
        for shard in item.participants:
            header, own, _ = item.for_participant(shard)
            assert header
            assert 1 <= len(own) // MEMBER.size <= item.size


def members_seeds() -> list[bytes]:
    """Plain transfers, groups, and both."""
    rig = two_players()
    plain = rig.attempt(60, Move(OTHER, ANN, 9, metadata=b"in"))
    group = rig.attempt(61, Move(ANN, OTHER, 2), Move(ANN, THIRD, 1, metadata=b"z"), is_group=True)
    alone, together = plain.packed()[1:], group.packed()[1:]
    both = tuple(map(b"".join, zip(alone, together, alone, strict=True)))
    return [join_parts(each) for each in (alone, together, both)]


TARGETS = (
    Target("calls", check_calls, calls_seeds, BODY_BYTES),
    Target("members", check_members, members_seeds, MEMBER.size),
)
