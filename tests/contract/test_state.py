"""The contract of `StateReader`, for those in LMDB, in memory and on a simulated disk."""

import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest

from shard_node.books import HOUR_US, Account, Period, account_row, period_row
from shard_node.damage import DamagedStateError
from shard_node.log import MemoryLog
from shard_node.memory import Rows
from shard_node.memory_state import MemoryState
from shard_node.putting import CLOSE_KEYS_MS
from shard_node.records import LogIdentity
from shard_node.rows import open_row, seal_row
from shard_node.state import (
    CHECKPOINT_KEY,
    KEY_RANGE_FACTOR,
    Checkpoint,
    LmdbState,
    Row,
    StateFile,
)
from tests.support.blocks import draft_of, epoch_draft, written_in
from tests.support.engines import IDENTITY, SHARD, START_US
from tests.support.rows import balance_row
from tests.whole_cluster.disk import DiskState

MAP_BYTES = 64 * 1024 * 1024
HOUR_0_US = START_US - START_US % HOUR_US


@dataclass
class Site:
    """A state, and the log that it is fold of."""

    state: LmdbState | MemoryState
    file: StateFile | MemoryState
    log: MemoryLog = field(default_factory=lambda: MemoryLog(IDENTITY, 1))

    def write(
        self,
        accounts: list[Row] | None = None,
        balances: list[Row] | None = None,
        periods: list[Row] | None = None,
        transfers: int = 1,
    ) -> Checkpoint:
        """Append a block of transfers and take a checkpoint of it and of these rows."""
        first = self.log.last.draft.last_sequence + 1 if self.log.last else 1
        self.log.append([draft_of(first, [b""] * transfers)])
        checkpoint = Checkpoint.of(IDENTITY, self.log, first, first + transfers - 1)
        rows = Rows(accounts or [], balances or [], periods or [])
        self.file.write_checkpoint(self.log, rows, checkpoint)
        self.state.refresh()
        return checkpoint


@pytest.fixture(params=["lmdb", "memory", "simulated"])
def site(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Site]:
    if request.param != "lmdb":
        memory = MemoryState() if request.param == "memory" else DiskState()
        yield Site(memory, memory)
        return
    file = StateFile(tmp_path / "state", MAP_BYTES)
    state = LmdbState(file)
    yield Site(state, file)
    state.close()


def account(account_id: int, **changes: Any) -> Account:
    fields = {"kind": 1, "status": 1, "floor_minor": 0, "cap_minor": 100, "opened_us": START_US}
    return Account(account_id, **{**fields, **changes})


def period(start_us: int, first_sequence: int, *, before: int = 0, incoming: int = 1) -> Period:
    """A period with `before` paid in before it, and one entry within it."""
    return Period(
        start_us,
        first_sequence,
        incoming_before=before,
        outgoing_before=0,
        incoming_count_before=before,
        outgoing_count_before=0,
        incoming=incoming,
        outgoing=0,
        incoming_count=1,
        outgoing_count=0,
        last_sequence=first_sequence,
        last_time_us=start_us,
        last_log=SHARD,
    )


def balances_of(loaded: Account | None) -> dict[int, Period | None]:
    assert loaded is not None
    return {currency: balance.current() for currency, balance in loaded.balances.items()}


# --- checkpoints ----------------------------------------------------------------------------------


def test_a_new_state_has_nothing(site: Site) -> None:
    state = site.state
    assert state.checkpoint is None
    assert state.load_account(1) is None
    assert state.find_keys([bytes(24)]) == {}
    assert state.period_before(1, 1, 2**63, 0) is None
    assert state.periods(1, 1, 0, 0, 10) == []
    assert state.account_ids(0, 10) == []


def test_a_checkpoint_says_up_to_where_it_is_true(site: Site) -> None:
    site.write(transfers=3)
    written = site.write(transfers=2)
    assert site.state.checkpoint == written
    assert (written.block, written.first_sequence, written.sequence) == (2, 4, 5)
    assert site.log.last is not None
    assert (written.block_hash, written.time_us) == (
        site.log.last.hash,
        site.log.last.draft.time_us,
    )


def test_a_checkpoint_is_packed_and_unpacked() -> None:
    checkpoint = Checkpoint(bytes(range(16)), 65_535, 2**63, bytes(32), 2**64 - 1, 1, START_US)
    assert Checkpoint.unpack(checkpoint.pack()) == checkpoint
    packed = checkpoint.pack()
    for at in range(len(packed)):
        with pytest.raises(DamagedStateError):
            Checkpoint.unpack(packed[:at] + bytes([packed[at] ^ 1]) + packed[at + 1 :])


def test_a_state_of_an_older_format_is_refused_and_the_way_out_is_told() -> None:
    checkpoint = Checkpoint(bytes(16), 1, 1, bytes(32), 1, 1, START_US)
    body = open_row(CHECKPOINT_KEY, checkpoint.pack())
    with pytest.raises(DamagedStateError, match="of format 1, not 2: where the folder `state` is"):
        Checkpoint.unpack(seal_row(CHECKPOINT_KEY, b"\1\0" + body[2:]))


def test_later_rows_take_the_place_of_earlier_ones(site: Site) -> None:
    site.write([account_row(account(5))], [balance_row(5, 1, period(HOUR_0_US, 1))])
    changed = account(5, status=2, status_reason="asked to", status_time_us=9, changed_sequence=2)
    grown = period(HOUR_0_US, 1, incoming=7)
    site.write([account_row(changed)], [balance_row(5, 1, grown)])
    loaded = site.state.load_account(5)
    assert loaded is not None
    assert balances_of(loaded) == {1: grown}
    assert account_row(loaded) == account_row(changed)


def test_a_row_grows_and_shrinks(site: Site) -> None:
    for reason in ("", "x" * 256, "é" * 100, "y"):
        site.write([account_row(account(5, status_reason=reason))])
        loaded = site.state.load_account(5)
        assert loaded is not None
        assert loaded.status_reason == reason


# --- accounts -------------------------------------------------------------------------------------


def test_an_account_comes_with_its_balance_in_each_currency(site: Site) -> None:
    neighbours = (4, 6, 2**63 - 1)
    currencies = (1, 2, 255, 256, 65_535)
    rows = [account_row(account(each)) for each in (5, *neighbours)]
    balances, periods = [], []
    for each in (5, *neighbours):
        for currency in currencies:
            first, second, third = (
                period(HOUR_0_US + hour * HOUR_US, hour + 1, before=hour * currency)
                for hour in range(3)
            )
            balances.append(balance_row(each, currency, third))
            periods += [period_row(each, currency, second), period_row(each, currency, first)]
    random.Random(1).shuffle(balances)
    site.write(rows, balances, periods)
    for each in (5, *neighbours):
        assert balances_of(site.state.load_account(each)) == {
            currency: period(HOUR_0_US + 2 * HOUR_US, 3, before=2 * currency)
            for currency in currencies
        }


def test_an_account_without_entries_has_no_balances(site: Site) -> None:
    site.write(
        [account_row(account(each)) for each in (1, 2, 3)],
        [balance_row(each, 1, period(HOUR_0_US, 1)) for each in (1, 3)],
    )
    assert balances_of(site.state.load_account(2)) == {}
    assert site.state.load_account(4) is None


def test_sums_past_64_bits_are_kept(site: Site) -> None:
    huge = period(HOUR_0_US, 1, before=2**80, incoming=2**70)
    huge = huge._replace(outgoing_before=2**80, incoming_count_before=2**40)
    site.write([account_row(account(1))], [balance_row(1, 1, huge)])
    assert balances_of(site.state.load_account(1)) == {1: huge}


def test_accounts_are_listed_in_order_and_in_pages(site: Site, rng: random.Random) -> None:
    ids = sorted({rng.randrange(1, 2**63) for _ in range(50)} | {1, 2**63 - 1})
    site.write([account_row(account(each)) for each in rng.sample(ids, len(ids))])
    found: list[int] = []
    while page := site.state.account_ids(found[-1] if found else 0, 7):
        assert len(page) <= 7
        found += page
    assert found == ids


# --- keys -----------------------------------------------------------------------------------------


def key(number: int) -> bytes:
    """The key of the transfers that `draft_of` makes."""
    return number.to_bytes(16, "big") + (1).to_bytes(8, "little")


def found(site: Site, numbers: list[int]) -> dict[int, int]:
    """Those asked for that were found; a scan may also tell of others."""
    keys = site.state.find_keys([key(number) for number in numbers])
    return {number: keys[key(number)] for number in numbers if key(number) in keys}


ROWS = 1_000
ASKED: dict[str, list[int]] = {
    "one that is there": [500],
    "one that is not": [ROWS + 5],
    "above all": [ROWS + 1, ROWS + 9],
    "below all": [0],
    "around all": [0, ROWS + 1],
    "the first and the last": [1, ROWS],
    "next to each other": list(range(300, 340)),
    "out of order and twice": [9, 3, 9, 7],
    "a scan that just suffices": [1, KEY_RANGE_FACTOR * 2],
    "a scan that just does not": [1, KEY_RANGE_FACTOR * 2 + 1],
    "far apart": [1, 2, 997, 5_000, 0],
    "at the end, and past it": [ROWS - 1, ROWS, ROWS + 1],
}


@pytest.mark.parametrize("asked", sorted(ASKED))
def test_keys_are_found_near_each_other_and_far_apart(site: Site, asked: str) -> None:
    site.write(transfers=ROWS // 2)
    site.write(transfers=ROWS // 2)
    numbers = ASKED[asked]
    assert found(site, numbers) == {each: each for each in numbers if 1 <= each <= ROWS}


def test_keys_are_found_whatever_is_asked(site: Site, rng: random.Random) -> None:
    site.write(transfers=ROWS)
    for _ in range(300):
        low = rng.randrange(ROWS)
        span = rng.choice((3, 30, ROWS * 2))
        numbers = [rng.randrange(low, low + span) for _ in range(rng.randrange(1, 40))]
        assert found(site, numbers) == {each: each for each in numbers if 1 <= each <= ROWS}


def test_keys_are_found_however_their_ids_were_made(site: Site, rng: random.Random) -> None:
    at_ms = rng.randrange(2**46, 2**47)
    kinds: list[Callable[[], int]] = [
        lambda: (at_ms + rng.randrange(CLOSE_KEYS_MS + 1)) << 80 | rng.getrandbits(80),
        lambda: rng.getrandbits(128),
        lambda: (at_ms - rng.randrange(10 * CLOSE_KEYS_MS)) << 80 | rng.getrandbits(80),
    ]
    sequence, ids = 1, []
    for _ in range(12):
        mix = rng.choice([[each] for each in kinds] + [kinds])
        mine = [rng.choice(mix)() for _ in range(rng.choice((1, 2, 40)))]
        draft = draft_of(sequence, [b""] * len(mine))
        records = b"".join(
            own.to_bytes(16, "big") + written.record[16:]
            for own, written in zip(mine, written_in(draft), strict=True)
        )
        site.log.append([replace(draft, records=records)])
        sequence += len(mine)
        ids += mine
    checkpoint = Checkpoint.of(IDENTITY, site.log, 1, sequence - 1)
    site.file.write_checkpoint(site.log, Rows([], [], []), checkpoint)
    site.state.refresh()
    assert found(site, ids) == dict(zip(ids, range(1, sequence), strict=True))


def test_records_that_are_no_transfers_have_no_key(site: Site) -> None:
    site.log.append([epoch_draft(1)])
    site.log.append([draft_of(2, [b""])])
    checkpoint = Checkpoint.of(IDENTITY, site.log, 1, 2)
    site.file.write_checkpoint(site.log, Rows([], [], []), checkpoint)
    site.state.refresh()
    assert found(site, [1, 2]) == {2: 2}
    assert site.state.find_keys([bytes(24)]).get(bytes(24)) is None


def test_keys_of_blocks_after_the_checkpoint_are_not_taken(site: Site) -> None:
    site.log.append([draft_of(1, [b""]), draft_of(2, [b""])])
    site.file.write_checkpoint(site.log, Rows([], [], []), Checkpoint.of(IDENTITY, site.log, 1, 1))
    site.state.refresh()
    assert found(site, [1, 2]) == {1: 1}


# --- periods --------------------------------------------------------------------------------------

# (start, first sequence) of account 5 in currency 2, and rows close to it on every side.
STARTS = [
    (HOUR_0_US, 10),
    (HOUR_0_US, 20),
    (HOUR_0_US + HOUR_US, 30),
    (HOUR_0_US + 9 * HOUR_US, 31),
]
NEAR = [(4, 2), (5, 1), (5, 3), (6, 2), (5, 65_535)]


def starting(start: tuple[int, int]) -> Period:
    """A period of account 5: the sums before it are those after the one before."""
    return period(*start, before=STARTS.index(start))


@pytest.fixture
def with_periods(site: Site) -> Site:
    mine = [period_row(5, 2, starting(start)) for start in STARTS]
    near = [period_row(*whose, period(*start)) for whose in NEAR for start in STARTS]
    site.write([account_row(account(each)) for each in (4, 5, 6)], [], mine + near)
    return site


EDGES = sorted(
    {(0, 0), (2**63 - 1, 0), (2**63 - 1, 2**64 - 1)}
    | {
        (start_us + time, max(0, sequence + step))
        for start_us, sequence in STARTS
        for time in (-1, 0, 1)
        for step in (-1, 0, 1, -sequence, 2**40)
    }
)


@pytest.mark.parametrize(("time_us", "sequence"), EDGES)
def test_periods_at_every_edge(with_periods: Site, time_us: int, sequence: int) -> None:
    state = with_periods.state
    before = [start for start in STARTS if start < (time_us, sequence)]
    after = [start for start in STARTS if start >= (time_us, sequence)]
    found = state.period_before(5, 2, time_us, sequence)
    assert found == (starting(before[-1]) if before else None)
    for count in (1, 2, 10):
        expected = [starting(start) for start in after[:count]]
        assert state.periods(5, 2, time_us, sequence, count) == expected


@pytest.mark.parametrize("from_us", sorted({time_us for time_us, _ in EDGES if time_us < 2**63}))
def test_the_ends_of_hours_from_every_edge_to_every_edge(with_periods: Site, from_us: int) -> None:
    for to_us, _ in EDGES:
        expected: dict[int, tuple[int, int]] = {}
        for index, (start_us, _) in enumerate(STARTS):
            if from_us <= start_us < to_us:
                expected[start_us - start_us % HOUR_US] = index + 1, 0
        found = with_periods.state.hour_ends(5, 2, from_us, to_us)
        assert found == list(expected.items()), (from_us, to_us)
    assert with_periods.state.hour_ends(3, 2, from_us, 2**63 - 1) == []


def test_periods_of_nobody(with_periods: Site) -> None:
    for whose in ((3, 2), (7, 2), (5, 4), (2**63 - 1, 65_535), (1, 1)):
        assert with_periods.state.period_before(*whose, 2**63 - 1, 0) is None
        assert with_periods.state.periods(*whose, 0, 0, 10) == []


# --- snapshots ------------------------------------------------------------------------------------


def test_a_snapshot_stays_at_its_checkpoint(site: Site) -> None:
    first = site.write([account_row(account(1))], [balance_row(1, 1, period(HOUR_0_US, 1))])
    with site.state.snapshot() as snapshot:
        assert snapshot.checkpoint == first  # from here on it must not move
        later = period(HOUR_0_US + HOUR_US, 2, before=1)
        second = site.write([account_row(account(2))], [balance_row(1, 1, later)])
        assert site.state.checkpoint == second
        assert balances_of(site.state.load_account(1)) == {1: later}
        assert snapshot.checkpoint == first
        assert snapshot.account_ids(0, 10) == [1]
        assert snapshot.load_account(2) is None
        assert balances_of(snapshot.load_account(1)) == {1: period(HOUR_0_US, 1)}
        assert snapshot.find_keys([key(2)]).get(key(2)) is None
    assert site.state.account_ids(0, 10) == [1, 2]


def test_room_grows_with_what_is_written(site: Site) -> None:
    site.write()
    before = site.state.used_bytes()
    site.write([account_row(account(each)) for each in range(1, 2_000)])
    assert site.state.used_bytes() > before + 2_000 * 40


# --- what only a file can show --------------------------------------------------------------------


@pytest.fixture
def file(tmp_path: Path) -> StateFile:
    return StateFile(tmp_path / "state", MAP_BYTES)


def test_a_reader_sees_one_checkpoint_until_it_is_refreshed(file: StateFile) -> None:
    state, other = LmdbState(file), LmdbState(file)
    site, unmoved = Site(state, file), Site(other, file)
    first = site.write([account_row(account(1))])
    assert unmoved.state.checkpoint == first
    second = site.write([account_row(account(2))])
    assert other.checkpoint == first
    assert other.load_account(2) is None
    other.refresh()
    assert other.checkpoint == second
    assert other.load_account(2) is not None
    other.refresh()
    state.close()


def test_a_damaged_row_is_found_when_it_is_read(file: StateFile, rng: random.Random) -> None:
    state = LmdbState(file)
    site = Site(state, file)
    row, balance = account_row(account(1)), balance_row(1, 1, period(HOUR_0_US + HOUR_US, 2))
    entry = period_row(1, 1, period(HOUR_0_US, 1))
    site.write([row], [balance], [entry])
    reads: list[tuple[Any, Row, Callable[[], object]]] = [
        (file.accounts, row, lambda: state.load_account(1)),
        (file.balances, balance, lambda: state.load_account(1)),
        (file.periods, entry, lambda: state.period_before(1, 1, 2**63 - 1, 0)),
        (file.periods, entry, lambda: state.periods(1, 1, 0, 0, 1)),
        (file.periods, entry, lambda: state.hour_ends(1, 1, 0, 2**63 - 1)),
    ]
    for table, (row_key, value), read in reads:
        sealed = seal_row(row_key, value)
        assert open_row(row_key, sealed) == value
        at = rng.randrange(len(sealed))
        damaged = sealed[:at] + bytes([sealed[at] ^ 1 << rng.randrange(8)]) + sealed[at + 1 :]
        for stored in (damaged, sealed[:-1], b""):
            _put(file, table, row_key, stored)
            state.refresh()
            with pytest.raises(DamagedStateError, match=row_key.hex()):
                read()
        _put(file, table, row_key, sealed)
        state.refresh()
        assert read()
    state.close()


def test_a_row_in_anothers_place_is_found(file: StateFile) -> None:
    """It is whole, with the checksum it was written with, and speaks of somebody else."""
    state = LmdbState(file)
    accounts = [account_row(account(each)) for each in (1, 2)]
    balances = [balance_row(each, 1, period(HOUR_0_US, each)) for each in (1, 2)]
    Site(state, file).write(accounts, balances)
    for table, (own, other) in ((file.accounts, accounts), (file.balances, balances)):
        _put(file, table, own[0], seal_row(*other))
        state.refresh()
        with pytest.raises(DamagedStateError, match=own[0].hex()):
            state.load_account(1)
        _put(file, table, own[0], seal_row(*own))
        state.refresh()
        assert state.load_account(1)
    state.close()


def _put(file: StateFile, table: Any, row_key: bytes, value: bytes) -> None:
    with file.env.begin(write=True, db=table) as txn:
        assert txn.put(row_key, value)


def test_a_state_is_taken_up_where_it_was_left(tmp_path: Path) -> None:
    file = StateFile(tmp_path, MAP_BYTES)
    site = Site(LmdbState(file), file)
    written = site.write([account_row(account(each)) for each in (1, 2)])
    site.state.close()
    state = LmdbState(StateFile(tmp_path, 2 * MAP_BYTES))
    assert state.checkpoint == written
    assert state.account_ids(0, 9) == [1, 2]
    assert [row[0][-1] for row in state.rows("accounts")] == [1, 2]
    assert state.load_account(2)
    assert len(list(state.rows("accounts"))) == 2, "from the first row, wherever a cursor stood"
    state.close()


def test_a_checkpoint_names_whose_it_is(file: StateFile) -> None:
    site = Site(LmdbState(file), file)
    site.log = MemoryLog(LogIdentity(bytes(16), 9), 1)
    site.log.append([draft_of(1, [b""])])
    checkpoint = Checkpoint.of(LogIdentity(bytes(16), 9), site.log, 1, 1)
    file.write_checkpoint(site.log, Rows([], [], []), checkpoint)
    assert site.state.checkpoint == checkpoint
    assert (checkpoint.cluster_id, checkpoint.shard_id) == (bytes(16), 9)
    site.state.close()
