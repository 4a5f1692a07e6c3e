"""Rows as the state's file has them: sealed by a checksum, or (keys) pointing to their record."""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, Final, Protocol
from zlib import crc32

from shard_node.damage import DamagedStateError
from shard_node.records import key_rows

if TYPE_CHECKING:
    from collections.abc import Iterator

    from shard_node.records import Block

_CRC: Final = struct.Struct("<I")
_CRC_BYTES: Final = 4
_SEALED: Final = 0x2144DF1C
"""The CRC-32 of whatever ends with its own, lowest byte first, and of nothing else."""
_SEQUENCE: Final = struct.Struct("<Q")  # as `records.key_rows` writes it


class HasBlocks(Protocol):
    """A log, as far as its blocks are read (`log.Log`)."""

    def blocks(self, from_sequence: int) -> Iterator[Block]:
        """See `Log`."""
        ...


def keys_in_log(
    log: HasBlocks, first_sequence: int, sequence: int
) -> Iterator[list[tuple[bytes, bytes]]]:
    """The rows of `keys` for the durable records from one to another, a block's at a time."""
    for block in log.blocks(first_sequence):
        if block.draft.first_sequence > sequence:
            break
        yield key_rows(block.draft)


def read_key_row(value: bytes) -> int:
    """The sequence that a row of `keys` says. Raises: DamagedStateError."""
    if len(value) != _SEQUENCE.size:
        raise DamagedStateError(f"a row of keys has {len(value)} bytes")
    sequence: int = _SEQUENCE.unpack(value)[0]
    return sequence


def seal_row(key: bytes, body: bytes) -> bytes:
    """A row's value: its body and a CRC-32 over key and body."""
    return body + _CRC.pack(crc32(key + body))


def open_row(key: bytes, value: bytes) -> bytes:
    """A row's body.

    Raises:
        DamagedStateError: the row is not as it was written.
    """
    # In one call: two of them cost as much again as to put the bytes together.
    if len(value) < _CRC_BYTES or crc32(key + value) != _SEALED:
        raise DamagedStateError(f"the row of key {key.hex()} does not have its checksum")
    return value[:-_CRC_BYTES]
