"""Every decoder for a moment, by the seeded mutator; `fuzz` is the long run."""

import random
import time

import pytest

from tests.hostile.mutate import mutate
from tests.hostile.targets import TARGETS

SECONDS = 0.25  # for each: the slowest takes a hundred inputs in that


@pytest.mark.parametrize("name", TARGETS)
def test_the_seeds_are_well_formed(name: str) -> None:
    for data in TARGETS[name].seeds():
        TARGETS[name].check(data)


@pytest.mark.parametrize("name", TARGETS)
def test_any_input_is_taken_or_refused_by_name(name: str, rng: random.Random) -> None:
    target = TARGETS[name]
    seeds = target.seeds()
    end_s = time.monotonic() + SECONDS
    while time.monotonic() < end_s:
        data = mutate(rng, seeds, target.stride)
        try:
            target.check(data)
        except Exception as error:
            error.add_note(f"{name}, input: {data.hex()}")
            raise
