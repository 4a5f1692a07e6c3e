"""Accounts, pairs, ids and requests, made before the clock starts.

A generator that makes its requests while it is timed measures itself. numpy makes five million
packed transfers in a second or two, in the very bytes that a router would send.
"""

import time
from collections.abc import Iterator
from typing import Literal

import numpy as np
import numpy.typing as npt

from cluster.topology import Topology
from doubloon.v1 import shard_service_pb2, types_pb2

CURRENCY = "GOLD"
ZIPF_EXPONENT = 1.1
AMOUNT_MAX_MINOR = 100
REDRAWS_MAX = 1_000
"""Draws of a partner on the wanted shard: each succeeds with a few percent at the least."""

IDS_PER_MS = 200
"""Ids made in advance carry the times they would have had at 200,000 transfers a second."""

Spread = Literal["uniform", "zipf"]
Ids = Literal["uuid7", "random"]
Numbers = npt.NDArray[np.uint64]

_BODY = np.dtype([
    ("id_high", ">u8"), ("id_low", ">u8"), ("source", "<u8"), ("destination", "<u8"),
    ("amount", "<i8"), ("reference", "<u8"), ("import_time", "<i8"), ("currency", "<u2"),
    ("metadata", "<u2"), ("type", "u1"), ("zero", "V3"),
])  # fmt: skip
"""`cluster.packed.BODY` as numpy spells it; a test holds the two together."""


class Draw:
    """Draws who pays whom, from a seed.

    Under `zipf` account 1 is the busiest and account n is busy with a weight of n^-1.1, for sources
    and destinations alike, as pgbench's `random_zipfian` does.

    Args:
        accounts: their ids are 1 … accounts; at least 2.
        spread: how busy they are.
        seed: the same draws again.
        topology: needed with `crossing`.
        crossing: the part of all transfers whose accounts are on two shards, 0 … 1; None = as it
            comes.
    """

    def __init__(
        self,
        accounts: int,
        spread: Spread,
        seed: int,
        topology: Topology | None = None,
        crossing: float | None = None,
    ) -> None:
        self._accounts = accounts
        self._rng = np.random.default_rng(seed)
        self._weights: npt.NDArray[np.float64] | None = None
        if spread == "zipf":
            weights = np.cumsum(np.arange(1, accounts + 1, dtype=np.float64) ** -ZIPF_EXPONENT)
            self._weights = weights / weights[-1]
        self._crossing = crossing
        self._shard_of: npt.NDArray[np.uint64] | None = None
        if crossing is not None:
            assert topology is not None, "who crosses depends on the topology"
            shards = [0, *(topology.shard_of(each) for each in range(1, accounts + 1))]
            self._shard_of = np.array(shards, dtype=np.uint64)

    def pairs(self, count: int) -> tuple[Numbers, Numbers]:
        """Return sources and destinations, never the same."""
        source = self._ranks(count)
        destination = self._others(source)
        if self._shard_of is None or self._crossing is None:
            return source, destination
        crosses = self._rng.random(count) < self._crossing
        for _ in range(REDRAWS_MAX):
            apart = self._shard_of[source] != self._shard_of[destination]
            (wrong,) = np.nonzero(apart != crosses)
            if not len(wrong):
                return source, destination
            destination[wrong] = self._others(source[wrong])
        raise ValueError(f"no pairs of which {self._crossing:.0%} cross: too few accounts")

    def amounts(self, count: int) -> npt.NDArray[np.int64]:
        """Return amounts, minor units."""
        return self._rng.integers(1, AMOUNT_MAX_MINOR + 1, count, dtype=np.int64)

    def ids(self, count: int, kind: Ids, start_ms: int) -> tuple[Numbers, Numbers]:
        """Return the high and low halves of ids; UUIDv7 from `start_ms` on, as many makers do."""
        high = self._rng.integers(0, 2**64, count, dtype=np.uint64)
        low = self._rng.integers(0, 2**64, count, dtype=np.uint64)
        low = low & np.uint64(2**62 - 1) | np.uint64(0b10 << 62)
        if kind == "random":
            return high & np.uint64(~(0xF << 12) & (2**64 - 1)) | np.uint64(0x4 << 12), low
        times_ms = start_ms + np.arange(count, dtype=np.uint64) // np.uint64(IDS_PER_MS)
        return times_ms.astype(np.uint64) << np.uint64(16) | high & np.uint64(0xFFF) | np.uint64(
            0x7 << 12
        ), low

    def _ranks(self, count: int) -> Numbers:
        if self._weights is None:
            return self._rng.integers(1, self._accounts + 1, count, dtype=np.uint64)
        return (1 + np.searchsorted(self._weights, self._rng.random(count))).astype(np.uint64)

    def _others(self, source: Numbers) -> Numbers:
        """Draw partners: ranks of one account less, with the source's own place skipped."""
        drawn = np.minimum(self._ranks(len(source)), np.uint64(self._accounts - 1))
        return drawn + (drawn >= source).astype(np.uint64)


def bodies(draw: Draw, count: int, ids: Ids, currency: int) -> bytes:
    """Return so many packed transfers, 64 bytes each."""
    packed = np.zeros(count, dtype=_BODY)
    packed["id_high"], packed["id_low"] = draw.ids(count, ids, time.time_ns() // 1_000_000)
    packed["source"], packed["destination"] = draw.pairs(count)
    packed["amount"] = draw.amounts(count)
    packed["currency"] = currency
    packed["type"] = int(types_pb2.TRANSFER_TYPE_TRANSFER)
    return packed.tobytes()


def packed_requests(packed: bytes, batch: int) -> list[bytes]:
    """Return the serialized calls of `ShardService.ExecuteTransfers` for packed transfers."""
    size = batch * _BODY.itemsize
    return [
        shard_service_pb2.ExecuteTransfersRequest(bodies=packed[at : at + size]).SerializeToString()
        for at in range(0, len(packed), size)
    ]


def unary_requests(draw: Draw, count: int, ids: Ids) -> Iterator[bytes]:
    """Yield the serialized calls of `WalletService.Transfer`."""
    source, destination = (each.tolist() for each in draw.pairs(count))
    amounts = draw.amounts(count).tolist()
    high, low = draw.ids(count, ids, time.time_ns() // 1_000_000)
    names = np.stack([high, low], axis=1).astype(">u8").tobytes()
    transfer = types_pb2.Transfer(currency=CURRENCY, type=types_pb2.TRANSFER_TYPE_TRANSFER)
    for index in range(count):
        transfer.transfer_id = names[index * 16 : index * 16 + 16]
        transfer.source_account_id = source[index]
        transfer.destination_account_id = destination[index]
        transfer.amount_minor = amounts[index]
        message = transfer.SerializeToString()
        assert len(message) < 0x80, "the length below has one byte"
        yield bytes((0x0A, len(message))) + message  # the request's only field
