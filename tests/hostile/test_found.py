"""What hostile input has found, each as a test of its own."""

import itertools
from collections.abc import Callable
from dataclasses import replace

import grpc
import pytest

from cluster import membership_codec as codec
from cluster.membership import Currency, Member, ShardInfo
from cluster.rpc import FAULT_KEY, fault_from_rpc_error
from cluster.topology import Topology, TopologyError
from doubloon import wire
from doubloon.faults import InternalFault
from doubloon.v1 import admin_service_pb2
from shard_node.errors import BadRequestError
from shard_node.queries import StatementRequest, statement
from shard_node.records import (
    HASH_BYTES,
    HEADER,
    BlockDraft,
    DamagedLogError,
    block_value,
    decode_block,
    encode_block,
    records_of,
)
from tests.hostile.calls import check_calls
from tests.hostile.messages import rpc_error
from tests.hostile.stored import check_replay, rehearse
from tests.hostile.target import join_parts
from tests.support.crossing import (
    ANN,
    HERE,
    MEMBER,
    OTHER,
    VOTE,
    YES,
    Attempt,
    Move,
    pack_bodies,
    two_players,
)
from tests.support.ledgers import BANK, EPOCH, IDENTITY

SHARD = codec.encode_shard(ShardInfo(3, 7, "node-1"))
MANY_DIGITS = b"9" * 4_000


def test_a_block_without_records_would_be_read_for_ever() -> None:
    empty = BlockDraft(1, 0, 1, b"", b"h" * 128)
    value = block_value(IDENTITY, encode_block(IDENTITY, EPOCH, 1, bytes(HASH_BYTES), empty))
    assert len(value) == HEADER.size + 128 + HASH_BYTES
    with pytest.raises(DamagedLogError, match="header"):
        decode_block(IDENTITY, 1, value)


@pytest.mark.parametrize(
    ("kind", "at", "value", "what"),
    [
        (1, 16, (2**40).to_bytes(8, "little"), "from 1099511627776"),  # pays from an unknown
        (1, 32, bytes(8), "cannot move 0"),
        (1, 56, bytes(2), "no currency"),
        (1, 64 + 8, (5).to_bytes(8, "little"), "balance"),
        (1, 64 + 24, (2**40).to_bytes(8, "little"), "entry before"),
        (1, 64 + 40, (2**62).to_bytes(8, "little"), "a time"),
        (1, 64 + 40, bytes(8), "a time"),
        (1, 64 + 48, bytes(8), "a time"),
        (1, 58, (257).to_bytes(2, "little"), "metadata"),
        (2, 0, (1).to_bytes(8, "little"), "opens account 1 again"),
        (2, 34, b"\7", "of kind 7"),
        (2, 8, (5).to_bytes(8, "little"), "bounds"),
        (3, 35, b"\0", "status 0"),
        (3, 32, b"\xff\xff", "past the heap"),
        (5, 64 + 3, b"\0", "group of 0"),
        (5, 64 + 1, b"\xee", "reason 238"),
        (6, 34, b"\0", "members"),
        (7, 64 + 2, b"\0\0", "participants"),
        (8, 64 + 16, bytes(8), "cannot move"),
        (8, 64 + 24, bytes(8), "cannot move"),
        (9, 64 + 16, bytes(8), "cannot move"),
        (11, 64 + 8, b"\1", "ids"),
        (1, 64, b"\x63", "kind 99"),
    ],
)
def test_a_record_that_cannot_be_true_is_damage_that_names_it(
    kind: int, at: int, value: bytes, what: str
) -> None:
    """The last record of the kind, spoilt in one field, with all that comes before it."""
    rig = rehearse()
    blocks = list(rig.log.blocks(1))
    # What follows the kind is 0 in a transfer that completed, and in what is no group.
    whole, index = [
        (block, index)
        for block in blocks
        for index, each in enumerate(records_of(block.draft))
        if each[64] == kind and (kind not in (1, 7) or each[65] == 0)
    ][-1]
    draft = whole.draft
    records = list(records_of(draft))
    spoilt = bytearray(records[index])
    spoilt[at : at + len(value)] = value
    records[index] = bytes(spoilt)
    bad = BlockDraft(
        draft.first_sequence, draft.count, draft.time_us, b"".join(records), draft.heap
    )
    fresh = type(rig)()
    for block in blocks[: whole.number - 1]:
        fresh.ledger.replay(block.draft)
    with pytest.raises(DamagedLogError, match=rf"record \d+ .*{what}"):
        fresh.ledger.replay(bad)


def test_a_leg_without_its_other_side_is_damage() -> None:
    """It kept every account's books, and broke conservation in silence."""
    rig = rehearse()
    for number, block in enumerate(rig.log.blocks(1)):
        legs = [r for r in records_of(block.draft) if r[64] in (8, 9) and r[70:72] == b"\7\0"]
        for leg in legs:
            check_replay(join_parts((bytes([number]), leg, block.draft.heap)))
    assert HERE == 7


@pytest.mark.parametrize("account_id", [0, 2**63, 2**64 - 1])
@pytest.mark.parametrize(("kind", "at"), [(1, 16), (1, 24), (3, 0), (8, 16), (9, 24), (2, 0)])
def test_a_record_about_what_is_no_accounts_id_is_damage(
    kind: int, at: int, account_id: int
) -> None:
    """The state could not even look for it: it has no such keys."""
    rig = rehearse()
    for number, block in enumerate(rig.log.blocks(1)):
        for record in records_of(block.draft):
            if record[64] == kind and not (kind == 1 and record[65]):
                spoilt = record[:at] + account_id.to_bytes(8, "little") + record[at + 8 :]
                check_replay(join_parts((bytes([number]), spoilt, block.draft.heap)))
                fresh = type(rig)()
                for each in itertools.islice(rig.log.blocks(1), number):
                    fresh.ledger.replay(each.draft)
                only = BlockDraft(
                    fresh.ledger.sequence + 1, 1, block.draft.time_us, spoilt, block.draft.heap
                )
                with pytest.raises(DamagedLogError, match=r"record \d+ "):
                    fresh.ledger.replay(only)


def nowhere(it: Attempt) -> tuple[bytes, ...]:
    """Prepare of one that is paid from shard 0: executed, and damage when it was replayed."""
    header, members, metadata = it.packed(HERE)
    return (b"\2", header, members[:64] + MEMBER.pack(b"", 0, HERE)[64:], metadata, b"")


def nameless(it: Attempt) -> tuple[bytes, ...]:
    """Prepare of one without an id, and a group here, whose legs have none: replay ended it."""
    header, *rest = it.packed(HERE)
    bodies = pack_bodies(b"g" * 16, [Move(BANK, ANN, 1)], is_group=True)
    return (b"\2", bytes(16) + header[16:], *rest, b"", b"\1", *bodies, b"", b"", b"")


def namesake(it: Attempt) -> tuple[bytes, ...]:
    """Prepare of one, and another of that name to be decided here: its legs ended the first."""
    other = replace(it, moves=(Move(ANN, OTHER, 1),), key=61)
    return (b"\2", *it.packed(HERE), b"", b"\3", *other.packed(), VOTE.pack(*YES))


@pytest.mark.parametrize("calls", [nowhere, nameless, namesake])
def test_what_calls_record_is_what_replay_makes_of_it(
    calls: Callable[[Attempt], tuple[bytes, ...]],
) -> None:
    rig = two_players()
    it = rig.attempt(60, Move(OTHER, ANN, 9, metadata=b"in"))
    commit = (b"\4", it.transaction_id + rig.stamp_us.to_bytes(8, "little"), b"", b"", b"")
    check_calls(join_parts(calls(it)))
    check_calls(join_parts((*calls(it), *commit)))


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("shards/" + "9" * 5_000, SHARD),
        ("shards/3", b"[" * 100_000),
        ("shards/3", b'{"epoch":' + MANY_DIGITS + b',"primary":"a","standbys":[]}'),
        ("shards/3", b'{"epoch":1,"primary":"\\ud800","standbys":[]}'),
        ("members/router/a", b'{"address":"\\ud800","version":"1","started_us":1}'),
        ("members/router/a", b'{"address":"a","version":"1","started_us":' + MANY_DIGITS + b"}"),
        ("topology", b"[" * 100_000),
    ],
)
def test_what_etcd_holds_is_refused_by_name(key: str, value: bytes) -> None:
    with pytest.raises(codec.UnreadableRecord):
        codec.decode("game", codec.prefix("game") + key, value)


def test_a_topology_has_a_version_that_messages_can_carry() -> None:
    with pytest.raises(TopologyError, match="version"):
        Topology.even([1], version=2**63)


def test_what_is_well_formed_still_passes() -> None:
    member = Member("router", "a", "127.0.0.1:1", "0.1.0", 1)
    assert codec.decode_member("router", "a", codec.encode_member(member)) == member
    assert codec.decode_shard("65535", SHARD).shard_id == 65_535
    assert Currency("GOLD", 1, 2, "Gold, größer").name


def test_a_peers_detail_that_is_no_fault_leaves_the_status() -> None:
    error = rpc_error(grpc.StatusCode.RESOURCE_EXHAUSTED, b"\xff\xff\xff")
    assert error.trailing_metadata()[FAULT_KEY]
    assert fault_from_rpc_error(error).code is grpc.StatusCode.RESOURCE_EXHAUSTED


@pytest.mark.parametrize(("time_us", "sequence"), [(5, 2**64 - 1), (-1, 5)])
def test_a_page_token_that_its_sender_sealed_is_refused(time_us: int, sequence: int) -> None:
    rig = rehearse()
    wanted = StatementRequest(ANN, 0, 0, 2**62, oldest_first=True, page_size=3, page_token=b"")
    token = wanted.token_after(time_us, sequence)
    wanted = StatementRequest(ANN, 0, 0, 2**62, oldest_first=True, page_size=3, page_token=token)
    with pytest.raises(BadRequestError, match="no page"):
        statement([rig.history(ANN)], wanted)


def test_a_transaction_whose_first_source_is_no_account_is_refused() -> None:
    """Its legs could not be recorded once it was decided."""
    call = (
        "010002280074786e3a00000000000000000000003c4083bbe8230a0600411f0000000024ffff0001"
        "000000000048000000000000000000000000000000003c411f0000000000000a0000000000000009"
        "00000000000000000000000000000000000000000000000100020001000000080007000000000002"
        "00696e0000010004180074786e3a00000000000000000000003c00386fe8230a0600000000000000"
        "010007100074786e3a00000000000000000000003e000000000000"
    )
    check_calls(bytes.fromhex(call))


def test_a_sum_that_is_no_number_breaks_the_contract() -> None:
    message = admin_service_pb2.AuditResponse()
    message.pairs.add(position_minor="1e5")
    with pytest.raises(InternalFault, match="contract"):
        wire.audit(message)
