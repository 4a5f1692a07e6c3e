"""Which shard owns which account: a fixed hash to one of 4,096 slots, and a map from slot to shard.

Pure. The slot of an account never changes (the hash is part of the format); the map does, as one
versioned value that is replaced whole. Versions are contiguous: a successor's version is one more.
"""

import json
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from typing import Self
from zlib import crc32

# Enough to spread over a few hundred shards within a few percent, few enough that the map is one
# small value.
SLOTS = 4096
_SLOT_MASK = SLOTS - 1
SHARD_ID_MAX = 0xFFFF
"""Shard ids are 1 … 65,535; 0 means none or unknown."""


VERSION_MAX = 2**63 - 1
"""Messages carry it in 64 bits."""


class TopologyError(ValueError):
    """A topology that cannot be one; the message names the field and what is wrong with it."""


def slot_of(account_id: int) -> int:
    """Return the slot of an account: CRC-32 of its id as 8 bytes, big-endian, modulo 4,096.

    Raises:
        OverflowError: the id is not an unsigned 64-bit number.
    """
    return crc32(account_id.to_bytes(8, "big")) & _SLOT_MASK


@dataclass(frozen=True)
class Topology:
    """Slot → shard, at one version.

    Attributes:
        version: 1, 2, 3 …; 0 is never a topology, it stands for "none known".
        shard_of_slot: SLOTS shard ids; the index is the slot.

    Raises:
        TopologyError: on construction, when a field is out of its bounds.
    """

    version: int
    shard_of_slot: tuple[int, ...]

    def __post_init__(self) -> None:
        if not _is_int(self.version) or not 1 <= self.version <= VERSION_MAX:
            raise TopologyError(f"version: must be 1 … 2^63 − 1, is {self.version!r:.40}")
        if len(self.shard_of_slot) != SLOTS:
            raise TopologyError(f"slots: must be {SLOTS} shard ids, are {len(self.shard_of_slot)}")
        for slot, shard_id in enumerate(self.shard_of_slot):
            if not _is_int(shard_id) or not 1 <= shard_id <= SHARD_ID_MAX:
                raise TopologyError(
                    f"slots[{slot}]: must be a shard id 1 … {SHARD_ID_MAX}, is {shard_id!r}"
                )

    @classmethod
    def even(cls, shard_ids: Iterable[int], version: int = 1) -> Self:
        """Deal the slots to the shards in equal contiguous ranges, in ascending order of shard id.

        Raises:
            TopologyError: no shards, one named twice, or more shards than slots.
        """
        ids = sorted(shard_ids)
        if not 1 <= len(ids) <= SLOTS:
            raise TopologyError(f"shard_ids: must be 1 … {SLOTS} of them, are {len(ids)}")
        if len(set(ids)) != len(ids):
            raise TopologyError(f"shard_ids: one is named twice in {ids}")
        return cls(version, tuple(ids[slot * len(ids) // SLOTS] for slot in range(SLOTS)))

    @cached_property
    def shards(self) -> tuple[int, ...]:
        """The ids of the shards that own any slot, ascending."""
        return tuple(sorted(set(self.shard_of_slot)))

    def shard_of(self, account_id: int) -> int:
        """Return the id of the shard that owns an account.

        The hash is written out a second time here, because routers ask this for every leg of every
        transfer and a function call costs as much as the hash.
        """
        return self.shard_of_slot[crc32(account_id.to_bytes(8, "big")) & _SLOT_MASK]

    def to_json(self) -> bytes:
        """Return the stored form: `{"version": 1, "slots": [1, 1, …]}`, UTF-8."""
        body = {"version": self.version, "slots": self.shard_of_slot}
        return json.dumps(body, separators=(",", ":")).encode()

    @classmethod
    def from_json(cls, data: bytes) -> Self:
        """Read the stored form.

        Raises:
            TopologyError: it is not one; the message says where.
        """
        try:
            body = json.loads(data)
        except (ValueError, RecursionError) as error:
            raise TopologyError(f"topology: is not JSON: {error}") from error
        if not isinstance(body, dict):
            raise TopologyError("topology: must be a JSON object")
        if unknown := sorted(body.keys() - {"version", "slots"}):
            raise TopologyError(f"topology: unknown field {unknown[0]!r}")
        slots = body.get("slots")
        if not isinstance(slots, list):
            raise TopologyError("slots: must be a list of shard ids")
        return cls(body.get("version", 0), tuple(slots))


def _is_int(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)
