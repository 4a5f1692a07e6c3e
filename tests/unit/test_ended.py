"""What is remembered of the ended, held against a dictionary."""

import random

from shard_node.ended import Ended

MANY = 60_000


def test_random_changes(rng: random.Random) -> None:
    ended = Ended()
    # In the order in which they were added: an id keeps its first time, and its latest outcome.
    model: dict[bytes, tuple[int, int]] = {}
    now_us = 1_000
    for _ in range(5_000):
        now_us += rng.randint(0, 3)
        transaction_id = rng.choice((bytes(15) + rng.randbytes(1), rng.randbytes(16)))
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
    assert not ended._buckets


def test_what_began_together_lies_together(rng: random.Random) -> None:
    """So that what comes later finds nothing to look through, and no bucket is large."""
    ended = Ended()
    for at in range(MANY):
        ended.add((at // 80).to_bytes(6, "big") + rng.randbytes(10), 1, 0)
    assert len(ended._buckets) == -(-MANY // 80 // 128)
    assert max(map(len, ended._buckets.values())) == 80 * 128
    ended.forget(2)
    assert not ended._buckets
