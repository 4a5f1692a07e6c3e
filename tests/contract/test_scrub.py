"""What a pass of the scrub finds, of rows in memory and of the same rows in LMDB."""

import random
from collections.abc import Callable
from pathlib import Path

import pytest

from shard_node.books import Period, period_row, read_balance_row, read_period_row
from shard_node.damage import DamagedStateError
from shard_node.ledger import KIND_SYSTEM
from shard_node.records import DamagedLogError
from shard_node.rows import open_row, seal_row
from shard_node.scrubbing import LOG, PARTS, SHARE_MAX, TABLES, Scrub, pause_s
from shard_node.state import TABLES as STATE_TABLES
from tests.support.engines import FLOOR_MINOR, IDENTITY, body
from tests.support.folders import Folder, open_here, write_history
from tests.support.rows import balance_row
from tests.support.scrubs import (
    MemoryView,
    Parts,
    looks_of,
    read_parts,
    scrub_lmdb,
    scrub_parts,
)

Scrubs = Callable[[Parts, int], Scrub]


@pytest.fixture
async def written(tmp_path: Path, rng: random.Random) -> Folder:
    return await write_history(tmp_path / "data", rng, accounts=8, calls=8, tail=3)


@pytest.fixture
def parts(written: Folder) -> Parts:
    return read_parts(written.path)


@pytest.fixture(params=["memory", "lmdb"])
def scrubs(request: pytest.FixtureRequest, tmp_path: Path) -> Scrubs:
    if request.param == "memory":
        return scrub_parts
    return lambda parts, rows_max: scrub_lmdb(parts, rows_max, tmp_path / "copy")


def test_it_reads_all_tables() -> None:
    assert TABLES == STATE_TABLES


@pytest.mark.parametrize("rows_max", [1, 7, 1_000])
def test_what_is_whole_is_read_to_its_end(parts: Parts, scrubs: Scrubs, rows_max: int) -> None:
    scrub = scrubs(parts, rows_max)
    assert scrub.checked == scrub.total == sum(len(parts[each]) for each in PARTS)
    assert scrub.part == LOG


@pytest.mark.parametrize("rows_max", [2, 1_000])
@pytest.mark.parametrize("table", ["accounts", "balances", "periods", "keys"])
def test_a_row_that_is_lost_is_missed(
    parts: Parts, scrubs: Scrubs, rng: random.Random, table: str, rows_max: int
) -> None:
    key = rng.choice(list(parts[table]))
    del parts[table][key]
    with pytest.raises(DamagedStateError, match=table):
        scrubs(parts, rows_max)


@pytest.mark.parametrize("part", ["accounts", "balances", "periods", "keys", LOG])
def test_a_changed_byte_is_found_and_named(
    parts: Parts, scrubs: Scrubs, rng: random.Random, part: str
) -> None:
    key = rng.choice(list(parts[part]))
    value = bytearray(parts[part][key])
    value[rng.randrange(len(value))] ^= 1 << rng.randrange(8)
    parts[part][key] = bytes(value)
    with pytest.raises((DamagedLogError, DamagedStateError)) as raised:
        scrubs(parts, 1_000)
    shown = key.hex() if part != LOG else f"sequence {int.from_bytes(key, 'big')}"
    assert shown in str(raised.value) or part == "periods", raised.value


def test_a_block_that_is_lost_is_missed(parts: Parts, scrubs: Scrubs, rng: random.Random) -> None:
    del parts[LOG][rng.choice(list(parts[LOG])[:-1])]
    with pytest.raises(DamagedLogError, match="does not follow"):
        scrubs(parts, 3)


def test_an_earlier_row_that_was_true_once_is_found(parts: Parts, scrubs: Scrubs) -> None:
    """A lost write puts a page back: each row on it has its checksum, and is of yesterday."""
    key, value = max(parts["balances"].items(), key=lambda row: _current(*row).last_sequence)
    it = _current(key, value)
    older = it._replace(last_sequence=it.last_sequence - 1)
    parts["balances"][key] = seal_row(key, balance_row(1, 1, older)[1])
    with pytest.raises(DamagedStateError, match="is not what record"):
        scrubs(parts, 1_000)


def test_sums_that_the_log_does_not_have_are_found(parts: Parts, scrubs: Scrubs) -> None:
    key, value = next(iter(parts["periods"].items()))
    it = read_period_row(key, open_row(key, value))
    richer = it._replace(incoming_before=it.incoming_before + 1)
    parts["periods"][key] = seal_row(key, period_row(1, 1, richer)[1])
    with pytest.raises(DamagedStateError, match=f"record {it.last_sequence} says"):
        scrubs(parts, 1_000)


def test_a_balance_that_the_log_does_not_have_is_found(parts: Parts, scrubs: Scrubs) -> None:
    key, value = next(iter(parts["balances"].items()))
    it = _current(key, value)
    richer = it._replace(incoming_before=it.incoming_before + 1)
    parts["balances"][key] = seal_row(key, balance_row(1, 1, richer)[1])
    with pytest.raises(DamagedStateError, match=f"record {it.last_sequence} says"):
        scrubs(parts, 1_000)


def _current(key: bytes, value: bytes) -> Period:
    return read_balance_row(key, open_row(key, value))[1]


@pytest.mark.parametrize("table", ["accounts", "balances", "periods", "keys"])
def test_a_row_that_no_block_tells_of_is_counted_or_points_nowhere(
    parts: Parts, table: str, rng: random.Random
) -> None:
    """A tree that leads to a row twice, or out of order."""
    rows = list(parts[table].items())
    rows.insert(0, rows.pop(rng.randrange(1, len(rows))))
    parts[table] = dict(rows)
    with pytest.raises(DamagedStateError, match="stands behind"):
        scrub_parts(parts, 5)


def test_a_row_that_a_search_does_not_find_is_told(parts: Parts) -> None:
    class Astray(MemoryView):
        def find(self, part: str, key: bytes) -> bytes | None:
            return None if part == LOG else super().find(part, key)

    with pytest.raises(DamagedLogError, match="is not found by its key"):
        Scrub(IDENTITY).step(Astray(parts))


def test_a_tree_that_ends_early_is_told(parts: Parts) -> None:
    class Short(MemoryView):
        def count(self, part: str) -> int:
            return super().count(part) + (part == "clearing")

    scrub = Scrub(IDENTITY)
    while scrub.part != "clearing":
        scrub.step(Short(parts))
    with pytest.raises(DamagedStateError, match="the table clearing has 0 rows"):
        scrub.step(Short(parts))


@pytest.mark.parametrize("rows_max", [1, 3, 40])
async def test_nothing_that_happens_meanwhile_alarms_it(
    tmp_path: Path, rng: random.Random, rows_max: int
) -> None:
    """Transfers, new accounts, status, checkpoints and blocks ahead of them, between any steps."""
    engine, fatal = open_here(tmp_path)
    await engine.start(1)
    look, scrub, accounts, number = looks_of(engine), Scrub(IDENTITY, rows_max), 0, 0
    steps = 0
    while scrub.passes < 10:
        for _ in range(rng.choice((0, 1, 1, 2)) if steps < 100 else 0):
            if accounts < 2 or rng.random() < 0.1:
                accounts += 1
                await engine.open_accounts([(accounts, KIND_SYSTEM, FLOOR_MINOR, 0)])
                continue
            bodies = []
            for _ in range(rng.randrange(1, 5)):
                number += 1
                source, destination = rng.sample(range(1, accounts + 1), 2)
                bodies.append(body(number, source, destination, 3))
            await engine.execute(b"".join(bodies), b"")
            if rng.random() < 0.3:
                await engine.checkpoint()
        for _ in range(rng.randrange(1, 4)):
            with look() as view:
                scrub.step(view)
            steps += 1
    assert not fatal
    assert engine.store.state.checkpoint is not None
    await engine.stop()


@pytest.mark.parametrize(
    ("read_bytes", "took_s", "expected_s"),
    [(1_000, 0.0, 1.0), (1_000, 0.05, 0.95), (100, 0.05, 0.05 / SHARE_MAX - 0.05), (0, 0.0, 0.0)],
)
def test_it_rests_for_its_rate_and_its_share(
    read_bytes: int, took_s: float, expected_s: float
) -> None:
    assert pause_s(read_bytes, took_s, 1_000) == pytest.approx(expected_s)
