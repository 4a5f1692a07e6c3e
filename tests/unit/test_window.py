"""Windows: what grows them, what halves them, and what says nothing."""

import random

import pytest

from coordinator.window import Ending, Window, WindowRules

LIFE_S = 16.0
YOUNG_S, OLD_S = 0.9, 4.0
RULES = WindowRules(LIFE_S, first=100, least=10, most=400)


@pytest.mark.parametrize(
    ("ending", "age_s", "waiting", "size"),
    [
        (Ending.DONE, YOUNG_S, 1, 108),
        (Ending.DONE, YOUNG_S, 0, 100),
        (Ending.DONE, 1.0, 1, 100),
        (Ending.DONE, 3.9, 1, 100),
        (Ending.DONE, OLD_S, 1, 50),
        (Ending.DONE, OLD_S, 0, 50),
        (Ending.RETRYING, YOUNG_S, 1, 100),
        (Ending.RETRYING, 3.9, 1, 100),
        (Ending.RETRYING, OLD_S, 1, 50),
        (Ending.CUT_OFF, YOUNG_S, 1, 100),
        (Ending.CUT_OFF, 1.0, 1, 50),
        (Ending.CUT_OFF, LIFE_S, 1, 50),
    ],
)
def test_one_ending(ending: Ending, age_s: float, waiting: int, size: int) -> None:
    window = Window(RULES)
    window.under_way += 8
    window.end(8, 5.0, 5.0 + age_s, ending, waiting)
    assert (window.size, window.under_way) == (size, 0)


def test_a_lone_attempt_has_room_whatever_its_size_and_no_other_beside_it() -> None:
    window = Window(RULES)
    assert window.has_room(1_000)
    window.under_way += 1_000
    assert not window.has_room(1)
    window.under_way = 99
    assert window.has_room(1)
    assert not window.has_room(2)


def test_a_wave_that_ends_old_halves_once_and_the_next_one_again() -> None:
    window = Window(RULES)
    for began_s, now_s, size in [(0, 8, 50), (0, 9, 50), (7.9, 16, 50), (8, 16, 25), (9, 17, 25)]:
        window.under_way += 1
        window.end(1, began_s, now_s, Ending.DONE, 1)
        assert window.size == size


def test_it_never_leaves_its_bounds() -> None:
    window = Window(RULES)
    for at in range(8):
        window.under_way += 1
        window.end(1, 10.0 * at, 10.0 * at + OLD_S, Ending.DONE, 1)
    assert window.size == RULES.least
    for _ in range(100):
        window.under_way += 8
        window.end(8, 100.0, 100.0 + YOUNG_S, Ending.DONE, 1)
    assert window.size == RULES.most


def test_what_an_attempt_takes_is_learned_in_a_windows_worth_and_halves_with_it() -> None:
    window = Window(RULES)
    for _ in range(10):
        window.under_way += 100
        window.end(100, 0.0, 2.0, Ending.DONE, 1)
    assert window.took_s == pytest.approx(2.0)
    window.under_way += 1
    window.end(1, 0.0, 0.01, Ending.DONE, 0)
    assert window.took_s == pytest.approx(2.0, rel=0.02), "a lone quick one proves little"
    window.under_way += 1
    window.end(1, 0.0, 3.0, Ending.CUT_OFF, 1)
    assert window.took_s == pytest.approx(1.5)


@pytest.mark.parametrize("seed", range(50))
def test_it_settles_where_attempts_are_neither_young_nor_old(seed: int) -> None:
    """Against a pipe that does so many a second, whatever it is, in waves of a full window."""
    rng = random.Random(seed)
    per_s = rng.uniform(RULES.least / OLD_S, RULES.most / YOUNG_S)
    window, now_s = Window(RULES), 0.0
    for wave in range(40):
        began_s, members = now_s, window.size
        window.under_way += members
        for _ in range(members):
            now_s += 1 / per_s
            window.end(1, began_s, now_s, Ending.DONE, 1)
        assert not window.under_way
        assert wave < 20 or now_s - began_s < LIFE_S / 2, f"{per_s} a second, {window.size}"
