"""What is remembered of the ended, held against a dictionary."""

import random

from shard_node.ended import Ended
from shard_node.key_table import PARTS

MANY = 60_000


def test_random_changes(rng: random.Random) -> None:
    ended = Ended()
    # In the order in which they were added: an id keeps its first time, and its latest outcome.
    model: dict[bytes, tuple[int, int]] = {}
    now_us = 1_000
    for _ in range(5_000):
        now_us += rng.randint(0, 3)
        transaction_id = rng.randbytes(1) + bytes(15) if rng.random() < 0.1 else rng.randbytes(16)
        until_us, decided_us = now_us + rng.randint(0, 500), rng.choice((0, now_us))
        ended.add(transaction_id, until_us, decided_us)
        model[transaction_id] = (model.get(transaction_id, (until_us,))[0], decided_us)
        if rng.random() < 0.2:
            ended.forget(now_us)
            while model and next(iter(model.values()))[0] < now_us:
                del model[next(iter(model))]
            assert len(ended) == len(model)
            assert all(ended.get(each) == decided for each, (_, decided) in model.items())
            assert ended.get(rng.randbytes(16)) is None
    ended.forget(now_us + 501)
    assert len(ended) == 0
    assert not any(ended._parts)


def test_random_ids_are_spread_over_all_parts(rng: random.Random) -> None:
    """So that none of them is large when it is moved to grow."""
    ended = Ended()
    for _ in range(MANY):
        ended.add(rng.randbytes(16), 1, 0)
    assert max(map(len, ended._parts)) < 3 * min(map(len, ended._parts))
    assert max(map(len, ended._parts)) < 2 * MANY / PARTS
