"""The table of keys, held against a dictionary."""

import random
import sys

from shard_node.key_table import PARTS, KeyTable

KEYS = 150_000
TURN_KEYS = 1_000
"""Of which a turn adds several times as many."""


def random_key(rng: random.Random, at: int) -> bytes:
    """In order, with ends that differ little or much; in no order; or alike but for the account."""
    return rng.choice(
        (
            at.to_bytes(8, "big") + bytes(16),
            at.to_bytes(8, "big") + rng.randbytes(8) + bytes(8),
            rng.randbytes(16) + bytes(8),
            bytes(16) + rng.randrange(5).to_bytes(8, "little"),
        )
    )


def test_random_changes(rng: random.Random) -> None:
    table, model = KeyTable(), dict[bytes, int]()
    for at in range(1, 5_000):
        key = random_key(rng, at)
        assert table.get(key) == model.get(key)
        if key not in model or rng.random() < 0.1:
            table.add(key, at)
            model[key] = at
    assert len(table) == len(model)
    assert all(table.get(key) == sequence for key, sequence in model.items())
    while table:
        keys_max, before = rng.randint(1, 1_000), len(table)
        table.drop(keys_max)
        left = {key for key in model if table.get(key) is not None}
        assert len(left) == len(table) == max(0, before - keys_max)
        assert all(table.get(key) == model[key] for key in left)
    table.drop(1)
    assert len(table) == 0


def test_parts_grow_one_after_the_other(rng: random.Random) -> None:
    """While it takes in keys, few are moved because of any thousand of them."""
    table = KeyTable()
    sizes, most = [0] * PARTS, 0
    for turn in range(KEYS // TURN_KEYS):
        for at in range(TURN_KEYS):
            table.add((turn * TURN_KEYS + at).to_bytes(8, "big") + rng.randbytes(16), at + 1)
        parts = table._parts
        grown = [
            part for part, size in zip(parts, sizes, strict=True) if sys.getsizeof(part) > size
        ]
        sizes = [sys.getsizeof(part) for part in parts]
        if turn >= KEYS // TURN_KEYS // 4:
            most = max(most, sum(map(len, grown)))
    assert max(map(len, table._parts)) < 4 * KEYS / PARTS
    assert most < KEYS / 10, f"{most} keys were moved in one turn"
