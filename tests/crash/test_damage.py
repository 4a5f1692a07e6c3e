"""A seeded sample of `python -m tests.crash damage`, and every part of a block and of a row."""

import asyncio
import random
import re
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from shard_node.log import LmdbLog
from shard_node.records import HASH_BYTES, HEADER_BYTES, RECORD_BYTES, Block, block_value
from shard_node.state import TABLES
from tests.crash.damage import (
    DamageCount,
    Written,
    check_looks,
    random_damage,
    try_damage,
    write_folder,
)
from tests.crash.mutants import SKIPS_FOLD, TRUSTS_HASHES, TRUSTS_POSITIONS, TRUSTS_ROWS
from tests.crash.opener import (
    CRASHED,
    FINE,
    REFUSED,
    SERVE,
    STOPPED,
    VERIFY,
    WRONG,
    Look,
    Opener,
)
from tests.support.folders import LIMITS, edit, flip_in_file
from tests.support.ledgers import IDENTITY

TRIALS = 20
COMMANDS = 14  # of each stream
META = "meta"


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory, pytestconfig: pytest.Config) -> Written:
    return asyncio.run(write_folder(tmp_path_factory.mktemp("damage"), 1, COMMANDS))


@pytest.fixture(scope="module")
def opener(written: Written) -> Iterator[Opener]:
    with Opener(written.history) as it:
        yield it


def test_damage_anywhere_is_found_or_harmless(
    written: Written, opener: Opener, rng: random.Random, tmp_path: Path
) -> None:
    count = DamageCount()
    for _ in range(TRIALS):
        damage = random_damage(rng, written)
        check_looks(damage, *try_damage(damage, written, tmp_path / "data", opener, count))
    assert len(count.looks) > 1, "all of it was harmless"


@dataclass
class Part:
    """Bytes that are alive: `size` of them from `at` on in a value that the file has."""

    file: str
    value: bytes
    at: int
    size: int
    names: str


def blocks_of(written: Written) -> list[Block]:
    log = LmdbLog(written.data / "log", IDENTITY, 2**64 - 1, LIMITS.log_map_bytes, read_only=True)
    try:
        return list(log.blocks(1))
    finally:
        log.close()


def part_of_block(block: Block, part: str) -> Part:
    value = block_value(IDENTITY, block)
    heap_at = HEADER_BYTES + block.draft.count * RECORD_BYTES
    ends = {
        "header": (0, HEADER_BYTES),
        "record": (HEADER_BYTES, heap_at),
        "heap": (heap_at, len(value) - HASH_BYTES),
        "hash": (len(value) - HASH_BYTES, len(value)),
    }
    start, end = ends[part]
    first = block.draft.first_sequence
    names = rf"\bblock {block.number}\b|\bsequence {first}\b"
    return Part("log", value, start, end - start, names)


def rows_of(written: Written, table: str) -> list[tuple[bytes, bytes]]:
    with (
        edit(written.data / "state") as (env, open_table),
        env.begin(db=open_table(table)) as txn,
    ):
        return [(bytes(key), bytes(value)) for key, value in txn.cursor()]


def look_at(part: Part, at: int, written: Written, folder: Path, opener: Opener) -> list[Look]:
    """What both looks say of a folder with a bit flipped there."""
    shutil.copytree(written.data, folder)
    assert flip_in_file(folder / part.file / "data.mdb", part.value, at, 1 << at % 8)
    looks = [opener.look(how, folder) for how in (VERIFY, SERVE)]
    shutil.rmtree(folder)
    return looks


@pytest.mark.parametrize("name", ["header", "record", "heap", "hash"])
def test_a_flipped_bit_of_any_part_of_a_block_is_found_and_named(
    name: str, written: Written, opener: Opener, rng: random.Random, tmp_path: Path
) -> None:
    blocks = blocks_of(written)
    covered = sum(each.draft.last_sequence <= covered_by(written) for each in blocks)
    for choice in (blocks[: covered - 1], blocks[covered - 1 :]):
        having = [each for each in choice if name != "heap" or each.draft.heap]
        part = part_of_block(
            rng.choice(having or [each for each in blocks if each.draft.heap]), name
        )
        at = part.at + rng.randrange(part.size)
        verified, served = look_at(part, at, written, tmp_path / "data", opener)
        assert verified.verdict == REFUSED, (at, verified)
        assert re.search(part.names, verified.message), verified
        if choice is not blocks[: covered - 1] and having and choice[0].number >= covered:
            assert served.verdict == REFUSED, "behind the checkpoint a start looks at all of it"


def covered_by(written: Written) -> int:
    """The last sequence that the state covers."""
    ((_, value),) = rows_of(written, META)
    return int.from_bytes(value[28:36], "little")


@pytest.mark.parametrize("table", [*TABLES, META])
def test_a_flipped_bit_of_any_row_is_found_and_never_answered_from(
    table: str, written: Written, opener: Opener, rng: random.Random, tmp_path: Path
) -> None:
    key, value = rng.choice(rows_of(written, table))
    part = Part("state", key + value, len(key), len(value), key.hex())
    at = part.at + rng.randrange(part.size)
    verified, served = look_at(part, at, written, tmp_path / "data", opener)
    assert verified.verdict == REFUSED, (table, at, verified)
    assert key.hex() in verified.message or table == META, verified
    assert served.verdict in (REFUSED, STOPPED, FINE), (table, at, served)


# --- planted bugs ---------------------------------------------------------------------------------


def test_a_start_that_trusts_hashes_is_noticed(written: Written, tmp_path: Path) -> None:
    block = next(each for each in reversed(blocks_of(written)) if each.draft.heap)
    part = part_of_block(block, "heap")
    with Opener(written.history, TRUSTS_HASHES) as opener:
        verified, _ = look_at(part, part.at, written, tmp_path / "data", opener)
    assert verified.verdict != REFUSED


def test_a_node_that_trusts_rows_is_noticed(written: Written, tmp_path: Path) -> None:
    """An account's row of another kind or floor; its checksum would have told."""
    key, value = rows_of(written, "accounts")[-1]
    found = set()
    with Opener(written.history, TRUSTS_ROWS) as opener:
        for at in (len(key), len(key) + 2):
            part = Part("state", key + value, at, 1, "")
            found.add(look_at(part, at, written, tmp_path / "data", opener)[1].verdict)
    assert found & {WRONG, CRASHED}


def test_a_verification_without_the_fold_is_noticed(written: Written, tmp_path: Path) -> None:
    key, value = rows_of(written, "keys")[0]
    part = Part("state", key + value, len(key), 1, "")
    with Opener(written.history, SKIPS_FOLD) as opener:
        verified, _ = look_at(part, part.at, written, tmp_path / "data", opener)
    assert verified.verdict == FINE


def test_a_start_that_trusts_positions_is_noticed(written: Written, tmp_path: Path) -> None:
    """A log without one of its blocks."""
    folder = tmp_path / "data"
    shutil.copytree(written.data, folder)
    block = blocks_of(written)[-2]
    with edit(folder / "log") as (env, _), env.begin(write=True) as txn:
        assert txn.delete(block.draft.first_sequence.to_bytes(8, "big"))
    with Opener(written.history) as right, Opener(written.history, TRUSTS_POSITIONS) as wrong:
        looks = [each.look(VERIFY, folder) for each in (right, wrong)]
    assert [each.verdict for each in looks] == [REFUSED, FINE]
