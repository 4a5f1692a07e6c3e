"""The log: every changed byte is found, and numbers at their extremes come back."""

import random
import struct
from dataclasses import replace
from typing import Any

import pytest

from cluster.packed import METADATA_BYTES_MAX
from shard_node.records import (
    BLOCK_BYTES_MAX,
    BLOCK_RECORDS_MAX,
    GENESIS_HASH,
    HASH_BYTES,
    HEADER_BYTES,
    RECORD_BYTES,
    Block,
    BlockDraft,
    DamagedLogError,
    LogIdentity,
    block_value,
    check_follows,
    cluster_id_of,
    decode_block,
    encode_block,
    records_of,
    unpack_transfer,
)
from tests.support.ledgers import BANK, EPOCH, IDENTITY, START_US, Rig, body_of, transfer_id
from tests.support.naive_ledger import PLAYER, SYSTEM, Ask

U64_MAX, I64_MAX = 2**64 - 1, 2**63 - 1


def blocks(count: int, metadata: bytes = b"order") -> list[Block]:
    """A chain of small blocks, with records of several kinds and a heap."""
    rig = Rig()
    rig.open_bank()
    rig.open(10)
    for number in range(count):
        rig.transfer(Ask(transfer_id(number), BANK, 10, 5, metadata=metadata))
        rig.seal()
    rig.sync()
    return list(rig.log.blocks(1))


def test_a_block_comes_back_as_it_was_written() -> None:
    for block in blocks(3):
        value = block_value(IDENTITY, block)
        assert decode_block(IDENTITY, block.draft.first_sequence, value) == block
        size = HEADER_BYTES + RECORD_BYTES * block.draft.count + len(block.draft.heap) + HASH_BYTES
        assert len(value) == size


def test_every_changed_byte_is_found() -> None:
    block = blocks(1)[0]
    value = block_value(IDENTITY, block)
    for at in range(len(value)):
        for bit in (0x01, 0x80):
            damaged = bytearray(value)
            damaged[at] ^= bit
            with pytest.raises(DamagedLogError):
                decode_block(IDENTITY, 1, bytes(damaged))


def test_every_missing_or_added_byte_is_found() -> None:
    value = block_value(IDENTITY, blocks(1)[0])
    for length in range(len(value)):
        with pytest.raises(DamagedLogError):
            decode_block(IDENTITY, 1, value[:length])
    with pytest.raises(DamagedLogError):
        decode_block(IDENTITY, 1, value + b"\0")


@pytest.mark.parametrize(
    "identity",
    [
        LogIdentity(IDENTITY.cluster_id, IDENTITY.shard_id + 1),
        LogIdentity(cluster_id_of("another"), IDENTITY.shard_id),
    ],
)
def test_another_logs_block_is_refused(identity: LogIdentity) -> None:
    value = block_value(IDENTITY, blocks(1)[0])
    with pytest.raises(DamagedLogError, match="another log"):
        decode_block(identity, 1, value)


def test_a_block_in_anothers_place_is_refused() -> None:
    value = block_value(IDENTITY, blocks(1)[0])
    with pytest.raises(DamagedLogError, match="starts at 1 but stands at 2"):
        decode_block(IDENTITY, 2, value)


def test_blocks_follow_each_other_in_their_order_alone() -> None:
    chain = [None, *blocks(4)]
    for at, before in enumerate(chain):
        for block in chain[1:]:
            assert block is not None
            if chain.index(block) == at + 1:
                check_follows(before, block)
            else:
                with pytest.raises(DamagedLogError):
                    check_follows(before, block)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"epoch": EPOCH - 1}, "older epoch"),
        ({"previous_hash": bytes(32)}, "does not name the hash"),
        ({"number": 3}, "does not follow"),
        ({"number": 1}, "does not follow"),
        ({"time_us": 0}, "older epoch or stamp"),
        ({"first_sequence": 1}, "does not follow"),
        ({"first_sequence": 999}, "does not follow"),
    ],
    ids=str,
)
def test_what_breaks_a_chain(change: dict[str, Any], says: str) -> None:
    first, second = blocks(2)
    of_draft = {each: change[each] for each in ("time_us", "first_sequence") if each in change}
    draft = replace(second.draft, **of_draft)
    of_block = {each: change[each] for each in change if each not in of_draft}
    with pytest.raises(DamagedLogError, match=says):
        check_follows(first, replace(second, draft=draft, **of_block))


def test_a_stamp_must_be_later_and_an_epoch_may_stay() -> None:
    first, second = blocks(2)
    same = replace(second, draft=replace(second.draft, time_us=first.draft.time_us))
    with pytest.raises(DamagedLogError, match="stamp"):
        check_follows(first, same)
    check_follows(first, replace(second, epoch=first.epoch + 5))


def test_a_transfers_record_comes_back_at_its_extremes() -> None:
    body = body_of(
        Ask(b"\xff" * 16, I64_MAX, I64_MAX - 1, I64_MAX, 65_535, 7, U64_MAX, b"m" * 256, I64_MAX)
    )
    # As the module's docstring lays the effects out.
    effects = struct.pack(
        "<2B2xI2q2Q2q2H4x",
        *(1, 14, 2**32 - 1),
        *(-I64_MAX, I64_MAX, U64_MAX, U64_MAX - 1, I64_MAX, I64_MAX - 1, 65_535, 65_534),
    )
    record = unpack_transfer(body + effects)
    assert (record.transfer_id, record.source, record.destination) == (
        b"\xff" * 16,
        I64_MAX,
        I64_MAX - 1,
    )
    assert (record.amount_minor, record.currency, record.type) == (I64_MAX, 65_535, 7)
    assert (record.reference, record.import_time_us) == (U64_MAX, I64_MAX)
    assert (record.reason, record.metadata_offset, record.metadata_bytes) == (14, 2**32 - 1, 256)
    assert (record.source_balance_minor, record.destination_balance_minor) == (-I64_MAX, I64_MAX)
    assert (record.source_previous, record.destination_previous) == (U64_MAX, U64_MAX - 1)
    assert (record.source_time_us, record.destination_time_us) == (I64_MAX, I64_MAX - 1)


def test_a_header_comes_back_at_its_extremes() -> None:
    identity = LogIdentity(b"\xff" * 16, 65_535)
    draft = BlockDraft(U64_MAX - 1, 1, I64_MAX, b"\xff" * RECORD_BYTES, b"")
    block = encode_block(identity, U64_MAX, U64_MAX, b"\xff" * 32, draft)
    assert decode_block(identity, U64_MAX - 1, block_value(identity, block)) == block


def test_a_full_block_has_room_for_exactly_its_bound() -> None:
    rig = Rig()
    rig.open_bank()
    rig.open(10)
    rig.seal()
    number = 0
    rig.begin_block()
    assert rig.ledger.block.room() == (BLOCK_BYTES_MAX - HEADER_BYTES - HASH_BYTES) // (
        RECORD_BYTES + METADATA_BYTES_MAX
    )
    while room := rig.ledger.block.room():
        rig.transfer(*(Ask(transfer_id(number + at), BANK, 10, 1) for at in range(room)))
        number += room
    rig.seal()
    (full,) = rig.store.sealed if len(rig.store.sealed) == 1 else list(rig.store.sealed)[1:]
    rig.sync()
    value = block_value(IDENTITY, list(rig.log.blocks(1))[-1])
    assert len(value) <= BLOCK_BYTES_MAX
    # What is left is less than one more record with the most metadata.
    assert BLOCK_BYTES_MAX - len(value) < RECORD_BYTES + METADATA_BYTES_MAX
    assert full.count == number <= BLOCK_RECORDS_MAX


def test_a_block_never_passes_its_size_whatever_metadata_it_carries(rng: random.Random) -> None:
    rig = Rig()
    rig.open_bank()
    rig.open(10)
    lengths = [rng.choice((0, 1, 100, METADATA_BYTES_MAX)) for _ in range(6_000)]
    asks = [
        Ask(transfer_id(number), BANK, 10, 1, metadata=bytes([number % 256]) * length)
        for number, length in enumerate(lengths)
    ]
    rig.transfer(*asks)
    rig.seal()
    rig.sync()
    stored = list(rig.log.blocks(1))
    assert len(stored) > 1
    assert max(len(block_value(IDENTITY, each)) for each in stored) <= BLOCK_BYTES_MAX
    first = rig.ledger.sequence + 1 - len(asks)
    for number in range(0, len(asks), 37):
        record, metadata = rig.store.read_transfer(first + number)
        assert unpack_transfer(record).transfer_id == asks[number].transfer_id
        assert metadata == asks[number].metadata


def test_metadata_is_read_back_wherever_its_record_is() -> None:
    rig = Rig()
    rig.open_bank()
    rig.open(10)
    texts = [b"", b"first", b"x" * METADATA_BYTES_MAX, b"last"]
    rig.transfer(
        *(Ask(transfer_id(at), BANK, 10, 1, metadata=text) for at, text in enumerate(texts))
    )
    for step in (rig.begin_block, rig.seal, rig.sync, rig.crash, rig.checkpoint):
        step()
        assert [rig.ledger.read_transfer(3 + at)[1] for at in range(4)] == texts


def test_the_open_block_is_read_while_it_is_written(rng: random.Random) -> None:
    """Any record of it, at any moment, however often; and sealed it has them all, in order."""
    rig = Rig()
    rig.open_bank()
    rig.open(10)
    first = rig.ledger.sequence + 1
    asks = [
        Ask(transfer_id(number), BANK, 10, 1, metadata=b"m" * (number % 4)) for number in range(60)
    ]
    for number, ask in enumerate(asks):
        rig.transfer(ask)
        for at in rng.choices(range(number + 1), k=rng.choice((0, 0, 1, 3))):
            record, metadata = rig.ledger.read_transfer(first + at)
            assert record.startswith(body_of(asks[at]))
            assert metadata == asks[at].metadata
    rig.seal()
    rig.sync()
    (block,) = rig.log.blocks(1)
    bodies = [record[: len(record) // 2] for record in records_of(block.draft)]
    assert bodies[-len(asks) :] == [body_of(each) for each in asks]


def test_records_of_a_block_are_its_slices() -> None:
    draft = blocks(1)[0].draft
    parts = list(records_of(draft))
    assert len(parts) == draft.count
    assert b"".join(parts) == draft.records


def test_clusters_have_names_of_their_own() -> None:
    names = {cluster_id_of(name) for name in ("a", "b", "ab", "")}
    assert len(names) == 4
    assert {len(each) for each in names} == {16}


def test_the_first_block_names_no_hash() -> None:
    block = blocks(1)[0]
    assert (block.number, block.draft.first_sequence) == (1, 1)
    assert (block.previous_hash, block.draft.time_us) == (GENESIS_HASH, START_US)


def test_a_recovered_ledger_is_the_one_that_wrote_the_log() -> None:
    """Records of every kind, replayed: the books and the keys are as they were."""
    rig = Rig()
    rig.begin_block()
    rig.ledger.begin_epoch(3)
    rig.open_bank()
    rig.open(10, PLAYER, 0, 500)
    rig.open(11, SYSTEM, -40, 0)
    asks = [Ask(transfer_id(each), BANK, 10, 100 * each, metadata=b"m" * each) for each in range(9)]
    first = rig.transfer(*asks)
    rig.change_status(11, 2)
    rig.seal()
    rig.sync()
    shown = {each: rig.account(each) for each in (BANK, 10, 11)}
    currents = {
        each: [b.current() for b in account.balances.values()] for each, account in shown.items()
    }
    rig.crash()
    for each, account in shown.items():
        again = rig.account(each)
        assert [b.current() for b in again.balances.values()] == currents[each]
        assert (again.status, again.status_reason, again.floor_minor, again.cap_minor) == (
            account.status,
            account.status_reason,
            account.floor_minor,
            account.cap_minor,
        )
    recorded = [each for each in first if each.time_us]
    repeats = [each for each in rig.transfer(*asks) if each.time_us]
    assert repeats == [each._replace(repeat=1) for each in recorded]
