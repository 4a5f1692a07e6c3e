"""The packed form of a batch of transfers, in which our own processes hand batches to each other.

A batch is two byte strings: `bodies`, one 64-byte body per transfer, and `metadata`, the metadata
of those transfers that have any, one after the other in the order of the bodies. A body is what the
client asked for and nothing else, so it is also the first half of the transfer's record in the log:
a retry has the same body exactly when its bytes are the same. Its first 24 bytes are the transfer's
key. Results travel as 24-byte records in the order of the bodies.

All numbers are little-endian. Fixed strides let a router slice a batch without parsing it again.

    body    offset  size  field
               0     16   transfer_id
              16      8   source account id
              24      8   destination account id
              32      8   amount, minor units (signed, as asked for)
              40      8   reference
              48      8   import time, microseconds; 0 = not an import
              56      2   currency number; 0 = a code that the router does not know
              58      2   metadata length, bytes
              60      1   TransferType
              61      3   zero

    result     0      1   TransferStatus
               1      1   RefusalReason; 0 unless refused
               2      1   DifferingField; 0 unless the key was reused
               3      1   1 = a repeat
               4      4   zero
               8      8   time, microseconds; 0 = none
              16      8   source's balance after, minor units
"""

from __future__ import annotations

import enum
import struct
from typing import Final

BATCH_TRANSFERS_MAX: Final = 8_192
"""The most transfers in one call: 8,192 bodies are 512 KiB, and far fewer would waste the sync."""

METADATA_BYTES_MAX: Final = 256
"""The most metadata one transfer carries: an order number and a word or two, not a document."""

BODY: Final = struct.Struct("<16s2Qq2QHHB3x")
"""transfer_id, source, destination, amount, reference, import time, currency, metadata length,
type."""

BODY_BYTES: Final = BODY.size
KEY_BYTES: Final = 24
KEY_SOURCE: Final = struct.Struct("<Q")
"""The second part of a key, behind the 16 bytes of the transfer id: the source account."""

RESULT: Final = struct.Struct("<4B4x2q")
"""status, refusal reason, differing field, repeat, time, source's balance after."""

RESULT_BYTES: Final = RESULT.size

assert BODY_BYTES == 64
assert RESULT_BYTES == 24


class DifferingField(enum.IntEnum):
    """The first field in which a reused key's body differs from the recorded one."""

    NONE = 0
    DESTINATION_ACCOUNT_ID = 1
    CURRENCY = 2
    AMOUNT_MINOR = 3
    TYPE = 4
    REFERENCE = 5
    METADATA = 6
    IMPORT_TIME_US = 7
