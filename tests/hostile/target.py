"""What a fuzzer needs to know of a decoder: examples of its input, and what must hold of any other.

A target's `check` takes any bytes. It returns when the contract holds: the decoder took the input,
or refused it with the error that it names for that. Whatever else is raised is a finding. Where
input carries a hash or checksum, `check` makes it right itself, so that a fuzzer gets behind it.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

_LENGTH = struct.Struct("<H")


@dataclass(frozen=True, slots=True)
class Target:
    """One decoder.

    Attributes:
        name: for the command line.
        check: see the module.
        seeds: makes well-formed inputs, from code and anew each time.
        stride: the size of the input's records, which the mutator then moves whole; 1 = none.
    """

    name: str
    check: Callable[[bytes], None]
    seeds: Callable[[], list[bytes]]
    stride: int = 1


def join_parts(parts: Iterable[bytes]) -> bytes:
    """Put byte strings of at most 65,535 bytes behind each other, so that `split_parts` can tell
    them apart."""
    return b"".join(_LENGTH.pack(len(part)) + part for part in parts)


def split_parts(data: bytes, count: int) -> list[bytes]:
    """The inverse, of any bytes: always `count` of them, the last ones empty when there are fewer.

    What a length promises and is not there is simply missing, so every mutation means something.
    """
    parts, at = [], 0
    for _ in range(count):
        head = data[at : at + _LENGTH.size]
        length = _LENGTH.unpack(head)[0] if len(head) == _LENGTH.size else 0
        parts.append(data[at + _LENGTH.size : at + _LENGTH.size + length])
        at += _LENGTH.size + length
    return parts
