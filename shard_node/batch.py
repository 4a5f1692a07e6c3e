"""A packed batch on its way through the ledger."""

from __future__ import annotations

from dataclasses import dataclass, field

from librt.strings import BytesWriter

from cluster.packed import BODY_BYTES


@dataclass(slots=True)
class Batch:
    """A packed batch on its way through the ledger.

    Attributes:
        bodies, metadata: as in `cluster.packed`.
        done: how many of its transfers are decided.
        metadata_at: where in `metadata` the next transfer's begins.
        results: one packed result for each decided transfer.
    """

    bodies: bytes
    metadata: bytes
    done: int = 0
    metadata_at: int = 0
    results: BytesWriter = field(default_factory=BytesWriter)

    @property
    def count(self) -> int:
        """How many transfers it has."""
        return len(self.bodies) // BODY_BYTES

    def next_metadata(self, length: int) -> bytes:
        """Takes the next transfer's metadata."""
        start = self.metadata_at
        self.metadata_at += length
        return self.metadata[start : self.metadata_at]
