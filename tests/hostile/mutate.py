"""A seeded mutator that knows where numbers and records lie: the fuzzer of every test run.

A coverage-guided fuzzer finds more (see `guided`), but is not to be had everywhere. This one needs
nothing: it takes valid encodings and changes them as damage and malice would.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence

EDGES = (0, 1, 2, 15, 16, 17, 127, 128, 255, 256, 65_535, 65_536, 2**31, 2**32 - 1, 2**62)
"""Numbers at which formats and counters turn; beside each, its negative and its neighbours."""

CHANGES_MAX = 4
"""Changes to one input: more of them and nothing of it is left that would get it past a check."""

INPUT_BYTES_MAX = 16_384
"""Longer inputs only make every step slower."""


def mutate(rng: random.Random, seeds: Sequence[bytes], stride: int) -> bytes:
    """Return a changed copy of one of the seeds."""
    data = bytearray(rng.choice(seeds))
    for _ in range(rng.randint(1, CHANGES_MAX)):
        rng.choice(_CHANGES)(rng, data, seeds, stride)
    return bytes(data[:INPUT_BYTES_MAX])


def _flip(rng: random.Random, data: bytearray, _: Sequence[bytes], __: int) -> None:
    if data:
        data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)


def _byte(rng: random.Random, data: bytearray, _: Sequence[bytes], __: int) -> None:
    if data:
        data[rng.randrange(len(data))] = rng.randrange(256)


def _number(rng: random.Random, data: bytearray, _: Sequence[bytes], __: int) -> None:
    """Put a number at an edge where one may lie: at a multiple of its size, or anywhere."""
    size = rng.choice((1, 2, 4, 8))
    if len(data) < size:
        return
    at = rng.randrange(len(data) - size + 1)
    if rng.random() < 0.7:
        at -= at % size
    number = rng.choice((1, -1)) * rng.choice(EDGES) + rng.choice((0, 0, 1, -1))
    number = rng.choice((number, 2 ** (8 * size - 1) - 1, 2 ** (8 * size) - 1))
    order = rng.choice(("little", "little", "big"))
    data[at : at + size] = (number % 2 ** (8 * size)).to_bytes(size, order)


def _cut(rng: random.Random, data: bytearray, _: Sequence[bytes], __: int) -> None:
    del data[rng.randint(0, len(data)) :]


def _remove(rng: random.Random, data: bytearray, _: Sequence[bytes], stride: int) -> None:
    at, length = _span(rng, data, stride)
    del data[at : at + length]


def _repeat(rng: random.Random, data: bytearray, _: Sequence[bytes], stride: int) -> None:
    at, length = _span(rng, data, stride)
    data[at:at] = data[at : at + length]


def _swap(rng: random.Random, data: bytearray, _: Sequence[bytes], stride: int) -> None:
    at, length = _span(rng, data, stride)
    other, _length = _span(rng, data, stride)
    if abs(at - other) >= length and other + length <= len(data):
        mine = data[at : at + length]
        data[at : at + length] = data[other : other + length]
        data[other : other + length] = mine


def _splice(rng: random.Random, data: bytearray, seeds: Sequence[bytes], stride: int) -> None:
    """Go on as another seed does."""
    other = rng.choice(seeds)
    at, _ = _span(rng, data, stride)
    start, length = _span(rng, other, stride)
    data[at:] = other[start:] if rng.random() < 0.5 else other[start : start + length] + data[at:]


def _insert(rng: random.Random, data: bytearray, _: Sequence[bytes], __: int) -> None:
    at = rng.randint(0, len(data))
    data[at:at] = rng.randbytes(rng.choice((1, 2, 8, 72)))


def _span(rng: random.Random, data: bytes | bytearray, stride: int) -> tuple[int, int]:
    """Where a record lies, or, every now and then, any piece."""
    if stride > 1 and rng.random() < 0.8:
        return stride * rng.randint(0, len(data) // stride), stride
    return rng.randint(0, len(data)), rng.choice((1, 2, 4, 8, 16, 64))


_Change = Callable[[random.Random, bytearray, Sequence[bytes], int], None]
_CHANGES: tuple[_Change, ...] = (
    *(_flip, _byte, _number, _number, _number),
    *(_cut, _remove, _repeat, _swap, _splice, _insert),
)
