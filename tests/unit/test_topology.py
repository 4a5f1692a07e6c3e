"""Slots are a format: these vectors never change. Topologies: dealt evenly, read strictly."""

import json
import random
from collections import Counter

import pytest

from cluster.topology import SLOTS, Topology, TopologyError, slot_of


def naive_slot(account_id: int) -> int:
    """CRC-32/ISO-HDLC bit by bit, from its definition."""
    crc = 0xFFFFFFFF
    for byte in account_id.to_bytes(8, "big"):
        crc ^= byte
        for _ in range(8):
            crc = (crc >> 1) ^ (0xEDB88320 if crc & 1 else 0)
    return (crc ^ 0xFFFFFFFF) % SLOTS


@pytest.mark.parametrize(
    ("account_id", "slot"),
    [(1, 4095), (2, 3653), (10_000, 3432), (2**63 - 1, 2758)],
)
def test_slots_that_other_languages_must_agree_with(account_id: int, slot: int) -> None:
    assert slot_of(account_id) == slot


def test_the_fast_hash_is_the_defined_one(rng: random.Random) -> None:
    for _ in range(200):
        account_id = rng.randrange(1, 2**63)
        assert slot_of(account_id) == naive_slot(account_id)


def test_consecutive_accounts_spread_over_the_slots() -> None:
    per_slot = Counter(slot_of(account_id) for account_id in range(1, 16 * SLOTS + 1))
    assert len(per_slot) == SLOTS
    assert max(per_slot.values()) < 4 * 16


@pytest.mark.parametrize("step", [1, 8, 1_000, 4_096, 2**26, 2**40])
@pytest.mark.parametrize("shards", [2, 3, 8])
def test_regular_ids_load_the_shards_alike(step: int, shards: int) -> None:
    topology = Topology.even(range(1, shards + 1))
    accounts = 8_192
    loads = Counter(topology.shard_of(step * n) for n in range(1, accounts + 1))
    assert max(loads.values()) < 1.1 * accounts / shards


@pytest.mark.parametrize("account_id", [-1, 2**64])
def test_what_is_no_unsigned_64_bit_number_has_no_slot(account_id: int) -> None:
    with pytest.raises(OverflowError):
        slot_of(account_id)


@pytest.mark.parametrize("count", [1, 2, 3, 7, 64, SLOTS])
def test_even_gives_every_shard_its_share(count: int) -> None:
    topology = Topology.even(range(1, count + 1))
    shares = Counter(topology.shard_of_slot)
    assert topology.version == 1
    assert topology.shards == tuple(range(1, count + 1))
    assert max(shares.values()) - min(shares.values()) <= 1


def test_shard_of_is_the_shard_of_the_slot(rng: random.Random) -> None:
    topology = Topology(7, tuple(rng.randrange(1, 9) for _ in range(SLOTS)))
    for _ in range(200):
        account_id = rng.randrange(1, 2**63)
        assert topology.shard_of(account_id) == topology.shard_of_slot[slot_of(account_id)]


def test_json_and_back(rng: random.Random) -> None:
    topology = Topology(3, tuple(rng.randrange(1, 65_536) for _ in range(SLOTS)))
    assert Topology.from_json(topology.to_json()) == topology


@pytest.mark.parametrize(
    ("shard_ids", "complaint"),
    [
        ([], "shard_ids: must be 1 … 4096"),
        (range(1, SLOTS + 2), "shard_ids: must be 1 … 4096"),
        ([1, 2, 2], "shard_ids: one is named twice"),
        ([0, 1], "slots[0]: must be a shard id 1 … 65535, is 0"),
    ],
)
def test_even_refuses(shard_ids: list[int], complaint: str) -> None:
    with pytest.raises(TopologyError) as refusal:
        Topology.even(shard_ids)
    assert complaint in str(refusal.value)


GOOD = [1] * SLOTS


@pytest.mark.parametrize(
    ("body", "complaint"),
    [
        (b"\xff", "topology: is not JSON"),
        (b"[]", "topology: must be a JSON object"),
        ({"slots": GOOD}, "version: must be 1 … 2^63 − 1, is 0"),
        ({"version": 0, "slots": GOOD}, "version: must be 1 … 2^63 − 1, is 0"),
        ({"version": True, "slots": GOOD}, "version: must be 1 … 2^63 − 1, is True"),
        ({"version": "1", "slots": GOOD}, "version: must be 1 … 2^63 − 1, is '1'"),
        ({"version": 1}, "slots: must be a list"),
        ({"version": 1, "slots": {}}, "slots: must be a list"),
        ({"version": 1, "slots": [1, 2]}, "slots: must be 4096 shard ids, are 2"),
        ({"version": 1, "slots": [*GOOD[1:], 65_536]}, "slots[4095]: must be a shard id"),
        ({"version": 1, "slots": [1, None, *GOOD[2:]]}, "slots[1]: must be a shard id"),
        ({"version": 1, "slots": GOOD, "moves": []}, "unknown field 'moves'"),
    ],
)
def test_what_cannot_be_a_topology_is_refused_by_name(body: object, complaint: str) -> None:
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    with pytest.raises(TopologyError) as refusal:
        Topology.from_json(data)
    assert complaint in str(refusal.value)
