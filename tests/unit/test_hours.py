"""Hours of a series: how their ends are found among rows, and how points are written."""

import random
import zlib
from bisect import bisect_left
from collections.abc import Callable

import hypothesis
import pytest
from hypothesis import strategies as st

from cluster.faults import Fault
from doubloon.v1 import wallet_service_pb2 as wallet
from shard_node import answers
from shard_node.books import BALANCE_KEY, BALANCE_MAX_MINOR, HOUR_US, Period, period_row
from shard_node.damage import DamagedStateError
from shard_node.hours import Hour, hours_between, pack_points, read_hour_ends
from shard_node.rows import open_row, seal_row
from tests.support.ledgers import START_US
from tests.support.properties import settings

OWNER = BALANCE_KEY.pack(5, 2)
HOUR_0_US = START_US - START_US % HOUR_US
TO_US = HOUR_0_US + 1_000 * HOUR_US

Row = tuple[bytes, bytes]


class ListCursor:
    """A cursor over rows in a list, in the order that they are given in."""

    def __init__(self, rows: list[Row]) -> None:
        self.rows = rows
        self.at = 0
        self.seeks = 0

    def set_range(self, key: bytes, /) -> bool:
        self.seeks += 1
        self.at = bisect_left(self.rows, key, key=lambda row: row[0])
        return self.at < len(self.rows)

    def prev(self) -> bool:
        self.at -= 1
        return self.at >= 0

    def last(self) -> bool:
        self.at = len(self.rows) - 1
        return self.at >= 0

    def item(self) -> tuple[bytes, bytes]:
        return self.rows[self.at]


def rows_of(starts_us: list[int], account_id: int, minor: Callable[[], int]) -> list[Row]:
    """Sealed rows of an account's periods, each of which goes on from the one before."""
    incoming_before = outgoing_before = 0
    rows = []
    for sequence, start_us in enumerate(starts_us, 1):
        incoming, outgoing = minor(), minor()
        it = Period(
            *(start_us, sequence, incoming_before, outgoing_before, sequence, sequence),
            *(incoming, outgoing, 1, 1, sequence, start_us, 1),
        )
        key, value = period_row(account_id, 2, it)
        rows.append((key, seal_row(key, value)))
        incoming_before += incoming
        outgoing_before += outgoing
    return rows


# --- ends -----------------------------------------------------------------------------------------


def test_ends_are_those_of_a_walk_over_every_row(rng: random.Random) -> None:
    """Hours of any number of periods, sums of any size, other accounts around or not."""
    for _ in range(200):
        spread_us = rng.choice((HOUR_US // 20, HOUR_US // 2, 5 * HOUR_US))
        starts_us = [HOUR_0_US]
        while len(starts_us) < rng.choice((1, 2, 30)):
            starts_us.append(starts_us[-1] + rng.choice((1, HOUR_US, rng.randrange(1, spread_us))))
        sums: dict[int, tuple[int, int]] = {}
        amounts: list[int] = []

        def minor(amounts: list[int] = amounts) -> int:
            amounts.append(rng.choice((0, 1, rng.randrange(10**6), 2**63 - 1, 2**70)))
            return amounts[-1]

        rows = rows_of(starts_us, 5, minor)
        for other in (4, 6):
            rows += rows_of(starts_us, other, lambda: 1) if rng.random() < 0.5 else []
        cursor = ListCursor(sorted(rows))
        edges = [each + shift for each in starts_us for shift in (-1, 0, 1)]
        from_us, to_us = sorted(rng.choices([0, *edges, TO_US], k=2))
        for index, start_us in enumerate(starts_us):
            if from_us <= start_us < to_us:
                upto = 2 * index + 2
                ends = sum(amounts[:upto:2]), sum(amounts[1:upto:2])
                sums[start_us - start_us % HOUR_US] = ends
        assert read_hour_ends(cursor, OWNER, from_us, to_us) == list(sums.items())
        assert cursor.seeks <= len(sums) + 1


def test_every_row_that_tells_an_end_is_checked(rng: random.Random) -> None:
    """In turn the first row of each hour, and the account's last."""
    starts_us = [HOUR_0_US + hour * HOUR_US + part for hour in range(3) for part in range(3)]
    rows = rows_of(starts_us, 5, lambda: 7)
    for index in (0, 3, 6, 8):
        key, value = rows[index]
        at = rng.randrange(len(value))
        flipped = value[:at] + bytes([value[at] ^ 1 << rng.randrange(8)]) + value[at + 1 :]
        sealed_otherwise = seal_row(key, value[:-5])
        for stored in (flipped, value[:-1], value[:3], b"", sealed_otherwise):
            damaged = ListCursor([*rows[:index], (key, stored), *rows[index + 1 :]])
            with pytest.raises(DamagedStateError, match=key.hex()):
                read_hour_ends(damaged, OWNER, HOUR_0_US, TO_US)


def test_rows_out_of_order_are_damage_and_not_an_endless_search() -> None:
    rows = rows_of([HOUR_0_US, HOUR_0_US + HOUR_US], 5, lambda: 7)

    class Astray(ListCursor):
        """Ends up at the first row, wherever it is sent."""

        def item(self) -> tuple[bytes, bytes]:
            return self.rows[0]

    with pytest.raises(DamagedStateError, match="not in its place"):
        read_hour_ends(Astray(rows), OWNER, HOUR_0_US, TO_US)


def test_a_row_is_whole_only_with_its_checksum(rng: random.Random) -> None:
    """The one that is compared as a whole, where `open_row` looks at what remains of it."""
    for _ in range(300):
        key, body = rng.randbytes(rng.randrange(30)), rng.randbytes(rng.randrange(130))
        crc = zlib.crc32(body, zlib.crc32(key)).to_bytes(4, "little")
        assert seal_row(key, body) == body + crc
        assert open_row(key, body + crc) == body
        wrong = (int.from_bytes(crc, "little") ^ rng.randrange(1, 2**32)).to_bytes(4, "little")
        with pytest.raises(DamagedStateError):
            open_row(key, body + wrong)


# --- points ---------------------------------------------------------------------------------------

edges = st.sampled_from([0, 1, 127, 128, 2**14, 2**32, 2**56, 2**62, 2**63 - 1])
sums = st.one_of(edges, st.integers(0, 2**63 - 1))
balances = st.one_of(sums, sums.map(lambda minor: -minor))
points = st.builds(Hour, sums, balances, sums, sums)


def test_points_are_written_as_protobuf_writes_them(seed: int) -> None:
    def check(hours: list[Hour]) -> None:
        message = wallet.GetBalanceSeriesResponse()
        for each in hours:
            message.hours.add(
                hour_start_us=each.start_us,
                balance_minor=each.balance_minor,
                incoming_minor=each.incoming,
                outgoing_minor=each.outgoing,
            )
        packed = pack_points(hours)
        assert packed == message.SerializeToString(deterministic=True)
        message.to_us, message.opening_balance_minor = 7, -8
        assert answers.series(7, -8, hours) == message

    property_ = hypothesis.given(st.lists(points, max_size=20))(check)
    hypothesis.seed(seed)(settings(300)(property_))()


@pytest.mark.parametrize("field", ["incoming_minor", "outgoing_minor"])
def test_a_sum_that_fits_no_field_is_not_answered(field: str) -> None:
    at_most, beyond = BALANCE_MAX_MINOR, BALANCE_MAX_MINOR + 1
    fits = Hour(HOUR_0_US, 0, at_most, at_most)
    assert answers.series(0, 0, [fits]).hours[0].incoming_minor == at_most
    sums_minor = (beyond, at_most) if field == "incoming_minor" else (at_most, beyond)
    with pytest.raises(Fault, match=str(beyond)) as caught:
        answers.series(0, 0, [fits, Hour(HOUR_0_US, 0, *sums_minor)])
    assert caught.value.code.name == "OUT_OF_RANGE"
    assert caught.value.field == field


def test_silent_hours_carry_the_balance_forward() -> None:
    ends = {2 * HOUR_US: (30, 5)}
    hours = hours_between(0, 3 * HOUR_US, (10, 4), ends)
    assert [(each.start_us // HOUR_US, each.balance_minor) for each in hours] == [
        *((0, 6), (1, 6), (2, 25), (3, 25)),
    ]
    assert [(each.incoming, each.outgoing) for each in hours] == [(0, 0), (0, 0), (20, 1), (0, 0)]
