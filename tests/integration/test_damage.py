"""Promise 8: whatever was changed, dropped or moved on disk is found, and never served from."""

import random
import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from shard_node.books import read_account_row, read_balance_row
from shard_node.damage import DamagedStateError
from shard_node.records import (
    HEADER_BYTES,
    Block,
    DamagedLogError,
    LogIdentity,
    cluster_id_of,
)
from shard_node.rows import open_row, seal_row
from shard_node.structure import lacks_pages_in_use
from shard_node.verify import verify_history
from tests.support.engines import IDENTITY
from tests.support.folders import (
    LIMITS,
    Folder,
    edit,
    flip_in_file,
    open_here,
    recovers,
    write_history,
)
from tests.support.rows import balance_row

FLIPS = 40
Damaged = (DamagedLogError, DamagedStateError)


@pytest.fixture
async def folder(tmp_path: Path, rng: random.Random) -> Folder:
    return await write_history(tmp_path / "data", rng)


def copy_of(folder: Folder, name: str) -> Folder:
    path = folder.path.parent / name
    shutil.copytree(folder.path, path)
    return replace(folder, path=path)


def verify(folder: Folder) -> None:
    verify_history(folder.path, IDENTITY, LIMITS)


async def test_an_undamaged_folder_is_served(folder: Folder) -> None:
    recovers(folder.path)
    verified = verify_history(folder.path, IDENTITY, LIMITS)
    assert verified.blocks == len(folder.blocks)
    assert verified.records == folder.blocks[-1].draft.last_sequence
    assert verified.rows > 0


@pytest.mark.parametrize("environments", [("log",), ("log", "state")])
def test_a_folder_whose_first_start_was_killed_is_empty_and_sound(
    tmp_path: Path, environments: tuple[str, ...]
) -> None:
    """LMDB makes a file before it writes to it."""
    for environment in environments:
        (tmp_path / environment).mkdir()
        (tmp_path / environment / "data.mdb").touch()
    verified = verify_history(tmp_path, IDENTITY, LIMITS)
    assert (verified.blocks, verified.records, verified.rows) == (0, 0, 0)
    recovers(tmp_path)


# --- blocks ---------------------------------------------------------------------------------------


def names(error: BaseException, block: Block) -> bool:
    """Whether the message tells a person where to look."""
    first = block.draft.first_sequence
    return bool(re.search(rf"\b(block {block.number}|sequence {first})\b", str(error)))


async def test_a_flipped_bit_of_any_block_is_found(folder: Folder, rng: random.Random) -> None:
    """In the file itself, in every part of a block; by --verify-all wherever it is, and by an
    ordinary start in every block from the checkpoint's on."""
    for number in range(FLIPS):
        block = rng.choice(folder.blocks)
        value = folder.value(block)
        parts = [(0, HEADER_BYTES), (HEADER_BYTES, len(value) - 32), (len(value) - 32, len(value))]
        at, mask = rng.randrange(*rng.choice(parts)), 1 << rng.randrange(8)
        damaged = copy_of(folder, f"flip-{number}")
        assert flip_in_file(damaged.path / "log" / "data.mdb", value, at, mask)
        with pytest.raises(Damaged) as caught:
            verify(damaged)
        assert names(caught.value, block), caught.value
        if block.number >= folder.checkpoint_block:
            with pytest.raises(Damaged) as caught:
                recovers(damaged.path)
            assert names(caught.value, block), caught.value
        shutil.rmtree(damaged.path)


async def test_a_changed_header_cannot_lead_astray(folder: Folder, rng: random.Random) -> None:
    """The header of the checkpoint's block is read before its hash is known to be right."""
    block = folder.blocks[folder.checkpoint_block - 1]
    value = folder.value(block)
    for at in range(HEADER_BYTES):
        folder.put(block, value[:at] + bytes([value[at] ^ 1 << rng.randrange(8)]) + value[at + 1 :])
        with pytest.raises(Damaged) as caught:
            recovers(folder.path)
        assert names(caught.value, block), (at, caught.value)


BlockDamage = Callable[[Folder, list[Block]], None]


def _drop_first(folder: Folder, blocks: list[Block]) -> None:
    folder.drop(blocks[0])


def _drop_middle(folder: Folder, blocks: list[Block]) -> None:
    folder.drop(blocks[len(blocks) // 2])


def _swap(folder: Folder, blocks: list[Block]) -> None:
    one, two = blocks[1], blocks[-2]
    first, second = folder.value(one), folder.value(two)
    folder.put(one, second)
    folder.put(two, first)


def _cut(folder: Folder, blocks: list[Block]) -> None:
    folder.put(blocks[1], folder.value(blocks[1])[:-1])


def _empty(folder: Folder, blocks: list[Block]) -> None:
    folder.put(blocks[1], b"")


def _repeat(folder: Folder, blocks: list[Block]) -> None:
    folder.put(blocks[2], folder.value(blocks[1]))


BLOCK_DAMAGES = [_drop_first, _drop_middle, _swap, _cut, _empty, _repeat]


@pytest.mark.parametrize("damage", BLOCK_DAMAGES)
async def test_damage_of_the_tail_is_found_at_every_start(
    folder: Folder, damage: BlockDamage
) -> None:
    damage(folder, folder.blocks[folder.checkpoint_block :])
    with pytest.raises(DamagedLogError, match=r"block \d+|at sequence \d+"):
        recovers(folder.path)
    with pytest.raises(DamagedLogError, match=r"block \d+|at sequence \d+"):
        verify(folder)


@pytest.mark.parametrize("damage", BLOCK_DAMAGES)
async def test_damage_of_old_blocks_is_found_by_verifying_all(
    folder: Folder, damage: BlockDamage
) -> None:
    damage(folder, folder.blocks[: folder.checkpoint_block - 1])
    with pytest.raises(DamagedLogError, match=r"block \d+|at sequence \d+"):
        verify(folder)


@pytest.mark.parametrize("blocks_left", [0, 1, -1])
async def test_a_log_that_ends_before_the_checkpoint_is_refused(
    folder: Folder, blocks_left: int
) -> None:
    keep = blocks_left if blocks_left >= 0 else folder.checkpoint_block - 1
    for block in folder.blocks[keep:]:
        folder.drop(block)
    for check in (recovers, lambda _: verify(folder)):
        with pytest.raises(DamagedStateError, match=f"block {folder.checkpoint_block}"):
            check(folder.path)


async def test_a_rewritten_tail_does_not_fit_the_checkpoint(
    folder: Folder, tmp_path: Path, rng: random.Random
) -> None:
    """A log that is whole by itself, but another than the one the state was made from."""
    other = await write_history(tmp_path / "other", rng)
    shutil.rmtree(folder.path / "log")
    shutil.copytree(other.path / "log", folder.path / "log")
    with pytest.raises(DamagedStateError, match=f"block {folder.checkpoint_block}"):
        recovers(folder.path)


# --- files ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("environment", ["log", "state"])
@pytest.mark.parametrize("left", ["nothing", "a page", "half", "all but a byte", "all but a page"])
async def test_a_file_that_is_cut_short_is_refused(
    folder: Folder, environment: str, left: str
) -> None:
    path = folder.path / environment / "data.mdb"
    size = path.stat().st_size
    sizes = {
        "nothing": 0,
        "a page": 4096,
        "half": size // 8192 * 4096,
        "all but a byte": size - 1,
        "all but a page": size - 4096,
    }
    with path.open("r+b") as file:
        file.truncate(sizes[left])
    if left == "nothing" and environment == "state":
        recovers(folder.path)  # as if it had never been: the log has everything
        return
    if left.startswith("all but") and not lacks_pages_in_use(path.parent):
        recovers(folder.path)  # LMDB itself may leave a file that ends before its free pages
        return
    with pytest.raises(Damaged):
        recovers(folder.path)


@pytest.mark.parametrize("environment", ["log", "state"])
async def test_a_file_of_something_else_is_refused(folder: Folder, environment: str) -> None:
    path = folder.path / environment / "data.mdb"
    path.write_bytes(b"not what it was" * 1_000)
    with pytest.raises(Damaged, match="cannot be opened"):
        recovers(folder.path)


@contextmanager
def edit_table(folder: Folder, table: str) -> Iterator[Any]:
    """A transaction on one of the state's tables, from outside."""
    with (
        edit(folder.path / "state") as (env, open_table),
        env.begin(write=True, db=open_table(table)) as txn,
    ):
        yield txn


# --- the state ------------------------------------------------------------------------------------


@pytest.mark.parametrize("table", ["accounts", "balances", "periods", "keys"])
@pytest.mark.parametrize("how", ["flip", "drop", "add"])
async def test_a_row_that_is_not_fold_of_the_log_is_found(
    folder: Folder, table: str, how: str, rng: random.Random
) -> None:
    with edit_table(folder, table) as txn:
        key, value = rng.choice([(bytes(k), bytes(v)) for k, v in txn.cursor()])
        if how == "flip":
            at = rng.randrange(len(value))
            txn.put(key, value[:at] + bytes([value[at] ^ 1]) + value[at + 1 :])
        elif how == "drop":
            txn.delete(key)
        else:
            key = key[:-1] + bytes([key[-1] ^ 0x55])
            txn.put(key, value)
    with pytest.raises(DamagedStateError, match=f"{table} with key {key.hex()}"):
        verify(folder)


async def test_a_row_with_a_valid_checksum_that_is_wrong_is_found(folder: Folder) -> None:
    """Somebody who knows the format gives an account more than it has."""
    with edit_table(folder, "balances") as txn:
        cursor = txn.cursor()
        assert cursor.last()
        key, value = bytes(cursor.key()), bytes(cursor.value())
        currency, period = read_balance_row(key, open_row(key, value))
        richer = period._replace(incoming=period.incoming + 1)
        same_key, row = balance_row(int.from_bytes(key[:8], "big"), currency, richer)
        assert same_key == key
        txn.put(key, seal_row(key, row))
    with pytest.raises(DamagedStateError, match=f"balances with key {key.hex()}"):
        verify(folder)


async def test_a_tail_that_does_not_follow_from_the_state_is_refused(folder: Folder) -> None:
    """As after a lost write: the row is whole, and not the one that the log was written upon."""
    tail = folder.blocks[folder.checkpoint_block]
    source = int.from_bytes(tail.draft.records[16:24], "little")
    currency = int.from_bytes(tail.draft.records[56:58], "little")
    key = source.to_bytes(8, "big") + currency.to_bytes(2, "big")
    with edit_table(folder, "balances") as txn:
        _, period = read_balance_row(key, open_row(key, bytes(txn.get(key))))
        _, row = balance_row(source, currency, period._replace(incoming=period.incoming + 1))
        txn.put(key, seal_row(key, row))
    with pytest.raises(DamagedStateError, match=f"block {tail.number} does not follow"):
        recovers(folder.path)


async def test_a_damaged_tree_is_told_by_verifying_all(folder: Folder) -> None:
    """LMDB itself may end the process on such a page, or pass over a row of it."""
    path = folder.path / "state" / "data.mdb"
    content = bytearray(path.read_bytes())
    for page in range(2 * 4096, len(content), 4096):
        content[page] ^= 1  # a page says that it is another
    path.write_bytes(content)
    with pytest.raises(DamagedStateError, match=r"the state's file is damaged: .* page"):
        verify(folder)


async def test_a_damaged_row_is_found_when_it_is_read(folder: Folder) -> None:
    with edit_table(folder, "accounts") as txn:
        cursor = txn.cursor()
        assert cursor.first()
        key, value = bytes(cursor.key()), bytes(cursor.value())
        assert read_account_row(key, open_row(key, value)).account_id == 1
        txn.put(key, value[:-5] + bytes([value[-5] ^ 1]) + value[-4:])
    log = folder.blocks[-1].draft
    for block in folder.blocks[folder.checkpoint_block :]:
        folder.drop(block)  # so that the replay does not come upon it first
    assert log.count
    engine, _ = open_here(folder.path, epoch=2)
    with pytest.raises(DamagedStateError, match=key.hex()):
        engine.account(1)
    assert engine.account(2).account_id == 2
    engine.store.state.close()
    engine.store.log.close()


async def test_a_key_that_points_elsewhere_is_never_answered_from(folder: Folder) -> None:
    with edit_table(folder, "keys") as txn:
        (one, first), (two, second) = [(bytes(k), bytes(v)) for k, v in list(txn.cursor())[:2]]
        txn.put(one, second)
        txn.put(two, first)
    engine, fatal = open_here(folder.path, epoch=2)
    await engine.start(2)
    with pytest.raises(DamagedStateError, match=one.hex()):
        await engine.find_transfer(int.from_bytes(one[16:], "little"), one[:16])
    assert not fatal
    await engine.stop()


# --- whose it is ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "other",
    [LogIdentity(cluster_id_of("another"), IDENTITY.shard_id), LogIdentity(IDENTITY.cluster_id, 2)],
    ids=["cluster", "shard"],
)
async def test_what_belongs_to_another_is_refused(folder: Folder, other: LogIdentity) -> None:
    with pytest.raises(DamagedLogError, match="belongs to another log"):
        open_here(folder.path, epoch=2, identity=other)
    for block in folder.blocks:
        folder.drop(block)
    with pytest.raises(DamagedStateError, match="belongs to another"):
        open_here(folder.path, epoch=2, identity=other)


async def test_an_epoch_that_is_over_is_refused(folder: Folder) -> None:
    open_ok, _ = open_here(folder.path, epoch=5)
    await open_ok.start(5)
    await open_ok.stop()
    with pytest.raises(DamagedLogError, match="epoch 4 is over"):
        open_here(folder.path, epoch=4)
