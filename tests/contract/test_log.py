"""The contract of `Log`, for the one in LMDB, the one in memory and the one on a simulated disk."""

import random
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path

import pytest

from shard_node.log import LmdbLog, Log, MemoryLog
from shard_node.records import (
    BLOCK_RECORDS_MAX,
    GENESIS_HASH,
    BlockDraft,
    DamagedLogError,
    LogIdentity,
    check_follows,
    cluster_id_of,
)
from tests.support.blocks import draft_of, random_drafts, written_in
from tests.support.engines import IDENTITY, START_US
from tests.whole_cluster.disk import Disk, DiskLog
from tests.whole_cluster.world import World


def simulated_disk() -> Disk:
    return Disk(World(random.Random(1)), IDENTITY, lambda: None)


MAP_BYTES = 64 * 1024 * 1024
OPENERS: dict[str, Callable[[Path], Log]] = {
    "lmdb": lambda path: LmdbLog(path, IDENTITY, 1, MAP_BYTES),
    "memory": lambda _path: MemoryLog(IDENTITY, 1),
    "simulated": lambda _path: DiskLog(simulated_disk(), 1),
}


@pytest.fixture(params=sorted(OPENERS))
def log(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Log]:
    made = OPENERS[request.param](tmp_path / "log")
    yield made
    made.close()


# --- the contract ---------------------------------------------------------------------------------


def test_a_new_log_is_empty(log: Log) -> None:
    assert log.last is None
    assert not list(log.blocks(1))
    for read in (log.read_transfer, log.locate):
        with pytest.raises(DamagedLogError, match="the record 1"):
            read(1)


def test_what_was_appended_is_read_back(log: Log, rng: random.Random) -> None:
    drafts = random_drafts(rng, 60)
    at = 0
    while at < len(drafts):
        count = rng.choice((1, 1, 2, 7))
        log.append(drafts[at : at + count])
        at += count
        log.refresh()
        some = drafts[rng.randrange(min(at, len(drafts)))]
        for sequence, written in enumerate(written_in(some), some.first_sequence):
            assert log.read_transfer(sequence) == (written.record, written.metadata)
    blocks = list(log.blocks(1))
    assert [block.draft for block in blocks] == drafts
    assert [block.number for block in blocks] == list(range(1, len(drafts) + 1))
    assert log.last == blocks[-1]
    assert blocks[0].previous_hash == GENESIS_HASH
    for before, block in pairwise(blocks):
        check_follows(before, block)


def test_a_record_is_located_in_its_block(log: Log, rng: random.Random) -> None:
    log.append(random_drafts(rng, 30))
    log.refresh()
    for block in log.blocks(1):
        first, last = block.draft.first_sequence, block.draft.last_sequence
        for sequence in {first, last, rng.randint(first, last)}:
            name = log.locate(sequence)
            assert (name.number, name.hash) == (block.number, block.hash)
            assert (name.first_sequence, name.last_sequence) == (first, last)
            assert name.time_us == block.draft.time_us


def test_what_is_past_the_end_is_not_there(log: Log) -> None:
    log.append([draft_of(1, [b"", b"abc"])])
    log.refresh()
    assert log.read_transfer(2)[1] == b"abc"
    for sequence in (0, 3, 2**63):
        for read in (log.read_transfer, log.locate):
            with pytest.raises(DamagedLogError, match=f"the record {sequence}$"):
                read(sequence)


def test_blocks_begin_where_asked(log: Log, rng: random.Random) -> None:
    drafts = random_drafts(rng, 12)
    log.append(drafts)
    for at, draft in enumerate(drafts):
        assert [each.draft for each in log.blocks(draft.first_sequence)] == drafts[at:]
    assert not list(log.blocks(drafts[-1].last_sequence + 1))


def test_reading_and_appending_go_on_side_by_side(log: Log) -> None:
    log.append([draft_of(1, [b"one"])])
    reading = log.blocks(1)
    assert next(reading).draft.first_sequence == 1
    log.append([draft_of(2, [b"two"])])
    log.refresh()
    assert log.read_transfer(2)[1] == b"two"
    log.append([draft_of(3, [b"three"])])
    log.refresh()
    assert log.read_transfer(1)[1] == b"one"
    assert log.read_transfer(3)[1] == b"three"


@pytest.mark.parametrize("metadata_bytes", [0, 120])
def test_a_full_block(log: Log, metadata_bytes: int) -> None:
    records = BLOCK_RECORDS_MAX if not metadata_bytes else 2_000
    metadata = [bytes([at % 256]) * metadata_bytes for at in range(records)]
    log.append([draft_of(1, metadata), draft_of(records + 1, [b"next"])])
    log.refresh()
    assert log.read_transfer(records)[1] == metadata[-1]
    assert log.locate(records).number == 1
    assert log.locate(records + 1).number == 2


FIRST = draft_of(1, [b"a", b"b"])
BREAKS: dict[str, BlockDraft] = {
    "a gap": draft_of(4, [b""]),
    "a record again": draft_of(2, [b""]),
    "the first block again": FIRST,
    "the same stamp": draft_of(3, [b""], time_us=FIRST.time_us),
    "an older stamp": draft_of(3, [b""], time_us=START_US - 1),
}


@pytest.mark.parametrize("broken", sorted(BREAKS))
def test_what_does_not_follow_is_refused_and_changes_nothing(log: Log, broken: str) -> None:
    log.append([FIRST])
    with pytest.raises(DamagedLogError, match="block 2"):
        log.append([BREAKS[broken]])
    log.refresh()
    assert [block.draft for block in log.blocks(1)] == [FIRST]
    log.append([draft_of(3, [b"c"])])
    assert log.last is not None
    assert log.last.number == 2


def test_a_log_begins_with_its_first_record(log: Log) -> None:
    with pytest.raises(DamagedLogError, match="from sequence 2"):
        log.append([draft_of(2, [b""])])
    assert log.last is None


def test_room_grows_with_what_is_appended(log: Log) -> None:
    log.append([draft_of(1, [b""])])
    before = log.used_bytes()
    log.append([draft_of(2, [bytes(250)] * 1_000)])
    assert log.used_bytes() - before >= 1_000 * (128 + 250)


# --- what only a file can show --------------------------------------------------------------------


def test_a_log_is_taken_up_where_it_was_left(tmp_path: Path, rng: random.Random) -> None:
    drafts = random_drafts(rng, 20)
    for epoch, some in enumerate((drafts[:7], drafts[7:8], drafts[8:]), 1):
        log = LmdbLog(tmp_path, IDENTITY, epoch, MAP_BYTES)
        log.append(some)
        log.close()
    log = LmdbLog(tmp_path, IDENTITY, 3, MAP_BYTES)
    blocks = list(log.blocks(1))
    log.close()
    assert [block.draft for block in blocks] == drafts
    assert [block.epoch for block in blocks] == [1] * 7 + [2] + [3] * 12
    for before, block in pairwise(blocks):
        check_follows(before, block)


def test_an_epoch_that_is_over_cannot_write(tmp_path: Path) -> None:
    log = LmdbLog(tmp_path, IDENTITY, 5, MAP_BYTES)
    log.append([FIRST])
    log.close()
    with pytest.raises(DamagedLogError, match="epoch 5 wrote block 1: epoch 4 is over"):
        LmdbLog(tmp_path, IDENTITY, 4, MAP_BYTES)
    LmdbLog(tmp_path, IDENTITY, 5, MAP_BYTES).close()


@pytest.mark.parametrize(
    "other",
    [LogIdentity(cluster_id_of("other"), IDENTITY.shard_id), LogIdentity(IDENTITY.cluster_id, 2)],
    ids=["cluster", "shard"],
)
def test_a_log_of_another_is_refused(tmp_path: Path, other: LogIdentity) -> None:
    log = LmdbLog(tmp_path, IDENTITY, 1, MAP_BYTES)
    log.append([FIRST])
    log.close()
    with pytest.raises(DamagedLogError, match="block 1 belongs to another log"):
        LmdbLog(tmp_path, other, 1, MAP_BYTES)


def test_one_who_only_looks_on_cannot_write(tmp_path: Path) -> None:
    log = LmdbLog(tmp_path, IDENTITY, 7, MAP_BYTES)
    log.append([FIRST])
    log.close()
    onlooker = LmdbLog(tmp_path, IDENTITY, 0, 0, read_only=True)
    try:
        with pytest.raises(Exception, match=r"[Rr]ead-?only|Permission denied"):
            onlooker.append([draft_of(3, [b""])])
    finally:
        onlooker.close()
