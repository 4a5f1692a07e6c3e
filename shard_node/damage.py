"""What is raised where a state is not what was written; `records` has the log's own.

A checksum that is right is no reason to believe what is behind it, so whoever reads a row says in
this way, too, that it does not have the form of its table. Pure.
"""

from __future__ import annotations


class DamagedStateError(Exception):
    """The state is not what was written, or not of this log: the message says which row."""


def unreadable_row(table: str, key: bytes, error: Exception) -> DamagedStateError:
    """The error for a row whose key or value does not have the form of its table."""
    return DamagedStateError(f"the row of {table} with key {key.hex()} cannot be read: {error}")
