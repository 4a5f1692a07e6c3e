"""The hybrid clock: strictly increasing, near the wall clock, dragged ahead only within a bound."""

import itertools
import random

import pytest

from cluster.clock import AHEAD_MAX_US, HybridClock, ManualClock, WallClock

NOW_US = 1_700_000_000_000_000


@pytest.fixture
def wall() -> ManualClock:
    return ManualClock(NOW_US)


@pytest.fixture
def clock(wall: ManualClock) -> HybridClock:
    return HybridClock(wall)


def test_ticks_follow_the_wall_clock_and_count_on_while_it_stands(
    wall: ManualClock, clock: HybridClock
) -> None:
    assert [clock.tick() for _ in range(3)] == [NOW_US, NOW_US + 1, NOW_US + 2]
    wall.advance(1_000)
    assert clock.tick() == NOW_US + 1_000
    assert clock.last_us == NOW_US + 1_000


def test_never_goes_backwards_when_the_wall_clock_does(
    wall: ManualClock, clock: HybridClock
) -> None:
    clock.tick()
    wall.advance(-3_600_000_000)
    assert [clock.tick(), clock.tick()] == [NOW_US + 1, NOW_US + 2]


def test_starts_after_its_floor(wall: ManualClock) -> None:
    assert HybridClock(wall, floor_us=NOW_US + 50).tick() == NOW_US + 51
    assert HybridClock(wall, floor_us=NOW_US - 50).tick() == NOW_US


@pytest.mark.parametrize("move", ["observe", "advance_past"])
@pytest.mark.parametrize(
    ("instant_us", "accepted", "next_tick_us"),
    [
        (NOW_US - 1, True, NOW_US),
        (NOW_US, True, NOW_US + 1),
        (NOW_US + 500, True, NOW_US + 501),
        (NOW_US + AHEAD_MAX_US, True, NOW_US + AHEAD_MAX_US + 1),
        (NOW_US + AHEAD_MAX_US + 1, False, NOW_US),
    ],
)
def test_moves_past_an_instant_within_the_bound(
    clock: HybridClock, move: str, instant_us: int, *, accepted: bool, next_tick_us: int
) -> None:
    assert getattr(clock, move)(instant_us) is accepted
    assert clock.refused == (0 if accepted else 1)
    assert clock.tick() == next_tick_us


def test_an_instant_already_passed_is_accepted_even_when_the_wall_clock_fell_back(
    wall: ManualClock, clock: HybridClock
) -> None:
    stamp_us = clock.tick()
    wall.advance(-10 * AHEAD_MAX_US)
    assert clock.observe(stamp_us)
    assert clock.refused == 0


def test_repeated_observation_cannot_ratchet_past_the_bound(
    wall: ManualClock, clock: HybridClock
) -> None:
    for _ in range(10):
        clock.observe(clock.last_us + AHEAD_MAX_US)
    assert clock.last_us <= wall.now_us() + AHEAD_MAX_US


def test_any_run_of_events_yields_strictly_increasing_stamps(
    wall: ManualClock, clock: HybridClock, rng: random.Random
) -> None:
    stamps = []
    for _ in range(2_000):
        match rng.randrange(4):
            case 0:
                wall.advance(rng.randrange(-AHEAD_MAX_US, AHEAD_MAX_US))
            case 1:
                clock.observe(wall.now_us() + rng.randrange(-AHEAD_MAX_US, 2 * AHEAD_MAX_US))
            case 2:
                instant_us = wall.now_us() + rng.randrange(-AHEAD_MAX_US, 2 * AHEAD_MAX_US)
                if clock.advance_past(instant_us):
                    stamps.append(clock.tick())
                    assert stamps[-1] > instant_us
            case _:
                stamps.append(clock.tick())
    assert all(earlier < later for earlier, later in itertools.pairwise(stamps))


def test_the_wall_clock_is_in_microseconds() -> None:
    assert 1_600_000_000_000_000 < WallClock().now_us() < 10_000_000_000_000_000
