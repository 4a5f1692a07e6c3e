"""Transfer ids: UUID version 7 (RFC 9562) as 16 bytes, made where the transfer is made.

An id orders by time, so that the ledger's index of keys appends instead of scattering. Within one
maker ids strictly increase, also within a millisecond and when the wall clock steps back: 73 random
bits are drawn for each new millisecond and then counted up (RFC 9562, 6.2, method 2, step 1). They
are unique, not secret: who sees an id can guess the next one.
"""

import os
import threading
import time
import uuid
from collections.abc import Callable
from typing import Final

_VERSION: Final = 0x7 << 76
_VARIANT: Final = 0b10 << 62
# The counted bits start below half of their range: a millisecond would have to last for 2^61 ids
# before the count reached the variant bits.
_COUNTED: Final = (1 << 61) - 1


class TransferIdMaker:
    """Makes increasing ids; safe to call from many threads, and different again after a fork.

    Args:
        time_ns: wall clock, nanoseconds since the Unix epoch.
        random_bytes: returns that many unpredictable bytes.
    """

    def __init__(
        self,
        time_ns: Callable[[], int] = time.time_ns,
        random_bytes: Callable[[int], bytes] = os.urandom,
    ) -> None:
        self._time_ns = time_ns
        self._random_bytes = random_bytes
        self._millisecond = -1
        self._last = 0
        self._watches_forks = False
        self._lock = threading.Lock()

    def make(self) -> bytes:
        """Return a new id, 16 bytes, greater than every earlier one of this maker."""
        with self._lock:
            millisecond = self._time_ns() // 1_000_000
            if millisecond > self._millisecond:
                self._begin(millisecond)
            self._last += 1
            return self._last.to_bytes(16, "big")

    def _begin(self, millisecond: int) -> None:
        if not self._watches_forks:  # only now: constructing a maker has no effect on the process
            os.register_at_fork(after_in_child=self._forget)
            self._watches_forks = True
        drawn = int.from_bytes(self._random_bytes(10), "big")
        high = (drawn >> 64 & 0xFFF) << 64
        self._millisecond = millisecond
        self._last = millisecond << 80 | _VERSION | high | _VARIANT | drawn & _COUNTED

    def _forget(self) -> None:
        """Count on from other random bits than the parent, whose thread may hold the lock."""
        self._lock = threading.Lock()
        self._millisecond = -1


# The one piece of state that is the process's and not a client's: increasing ids, for `Transfer`
# makes its own before any client has seen it.
_PROCESS: Final = TransferIdMaker()


def new_transfer_id() -> bytes:
    """Return a new transfer id, 16 bytes: greater than every earlier one of this process."""
    return _PROCESS.make()


def as_uuid(transfer_id: bytes) -> uuid.UUID:
    """Return an id in the form that people and logs read."""
    return uuid.UUID(bytes=transfer_id)
