"""The packed forms in which our own processes hand transfers and transactions to each other.

A batch is two byte strings: `bodies`, one 64-byte body per transfer, and `metadata`, the metadata
of those transfers that have any, one after the other in the order of the bodies. A body is what the
client asked for and nothing else, so it is also the first half of the transfer's record in the log:
a retry has the same body exactly when its bytes are the same. Its first 24 bytes are the transfer's
key. Results travel as 24-byte records in the order of the bodies.

A *group*'s bodies stand one after the other, each with the group's id as its transfer id, its index
and the group's size; the key is that of the first. A *transaction* (two-phase commit) names shards:
its *members* are bodies with the shards of their two accounts behind them, a plain transfer being a
transaction of one member. What concerns a transaction as a whole travels in a *header*.

All numbers are little-endian. Fixed strides let a router slice a batch without parsing it again.

    body    offset  size  field
               0     16   transfer_id, or group_id
              16      8   source account id
              24      8   destination account id
              32      8   amount, minor units (signed, as asked for)
              40      8   reference
              48      8   import time, microseconds; 0 = not an import
              56      2   currency number; 0 = a code that the router does not know
              58      2   metadata length, bytes
              60      1   TransferType
              61      1   index in its group
              62      1   size of its group; 0 = it is not of a group
              63      1   zero

    result     0      1   TransferStatus
               1      1   RefusalReason when refused, FaultCode when at fault, else 0
               2      1   DifferingField; 0 unless the key was reused
               3      1   1 = a repeat
               4      1   with a refusal: the index in its group of the transfer refused
               5      1   1 = the fault is indefinite
               6      2   zero
               8      8   time, microseconds; 0 = none
              16      8   source's balance after, minor units

    member     0     64   body
              64      2   the source account's shard
              66      2   the destination account's shard
              68      4   zero

    header     0     16   transaction id: the millisecond in which it was begun, 6 bytes big-endian
                          (as a UUID of version 7 has it), and 10 random bytes
              16      8   deadline, microseconds
              24      8   the first member's source account: with its transfer id, the key
              32      2   home: the shard of that account
              34      1   how many members follow for it in this message
              35      5   zero

    vote       0      1   Vote
               1      1   RefusalReason with NO; else 0
               2      1   the index of the transfer refused
               3      5   zero

    answer     0      1   Fate of this transaction
               1      1   Outcome of the key
               2      1   RefusalReason with REFUSED; else 0
               3      1   DifferingField; 0 unless the key was reused
               4      1   1 = the key had this outcome already
               5      1   the index of the transfer refused
               6      1   1 = some participant may have yet to post the transaction that committed
                          the key, as far as the home knows
               7      1   zero
               8      8   time, microseconds; 0 = none
              16      8   source's balance after, minor units
              24      8   when the key's transaction was decided, microseconds; 0 = it was not
              32     16   the transaction that committed the key; zero = none. Its participants are
                          those of this one: the same key and body touch the same accounts

    decision   0     16   transaction id
              16      8   when it was decided, or its deadline, microseconds

    resolution 0      1   Fate
               1      7   zero
               8      8   when it was decided, microseconds; 0 = it was not
"""

from __future__ import annotations

import enum
import struct
from typing import Final

from librt.strings import BytesWriter, write_i64_le

BATCH_TRANSFERS_MAX: Final = 8_192
"""The most transfers in one call: 8,192 bodies are 512 KiB, and far fewer would waste the sync."""

METADATA_BYTES_MAX: Final = 256
"""The most metadata one transfer carries: an order number and a word or two, not a document."""

BODY: Final = struct.Struct("<16s2Qq2QHHB3x")
"""transfer_id, source, destination, amount, reference, import time, currency, metadata length,
type: a body that is not of a group."""

SOURCE_AT: Final = 16
DESTINATION_AT: Final = 24
AMOUNT_AT: Final = 32
IMPORT_AT: Final = 48
CURRENCY_AT: Final = 56
METADATA_LENGTH_AT: Final = 58
INDEX_AT: Final = 61
GROUP_SIZE_AT: Final = 62
"""Where a body has what the hot path reads of it, one number at a time."""

MEMBER_BODY: Final = struct.Struct("<16s2Qq2QHH3Bx")
"""The same bytes, and behind the type the index in the group and the group's size."""

BODY_BYTES: Final = BODY.size
TRANSFER_ID_BYTES: Final = 16
KEY_BYTES: Final = 24
KEY_SOURCE: Final = struct.Struct("<Q")
"""The second part of a key, behind the 16 bytes of the transfer id: the source account."""

RESULT: Final = struct.Struct("<4B4x2q")
"""status, reason, differing field, repeat, time, source's balance after: of a batch of transfers,
where nothing else occurs."""

GROUP_RESULT: Final = struct.Struct("<6B2x2q")
"""The same bytes, and behind the repeat the index refused and whether a fault is indefinite."""

RESULT_BYTES: Final = RESULT.size

GROUP_SIZE_MAX: Final = 16
"""The most transfers in a group: a sale with its fees and shares, not a settlement run."""

GROUPS_MAX: Final = 1_024
"""The most groups in one call; their transfers are bounded by `BATCH_TRANSFERS_MAX` as well."""

MEMBER: Final = struct.Struct("<64s2H4x")
"""body, source's shard, destination's shard."""

MEMBER_BYTES: Final = 72
"""Its size, and a number that costs no look-up."""

SHARDS_AT: Final = 64
"""Where a member has its two shards, two bytes each."""

HEADER: Final = struct.Struct("<16sqQHB5x")
"""transaction id, deadline, first source account, home, members."""

HEADER_BYTES: Final = 40

VOTE: Final = struct.Struct("<3B5x")
"""vote, refusal reason, index."""

VOTE_BYTES: Final = 8

ANSWER: Final = struct.Struct("<7Bx3q16s")
"""fate, outcome, refusal reason, differing field, repeat, index, unposted, time, source's balance
after, decided, transaction id."""

ANSWER_BYTES: Final = 48
ANSWER_TIME_AT: Final = 8
"""Time and balance stand in an answer where a result has them, and are copied from one to the
other."""
ANSWER_DECIDED_AT: Final = 24
ANSWER_ID_AT: Final = 32

DECISION: Final = struct.Struct("<16sq")
"""transaction id, time."""

DECISION_BYTES: Final = 24

RESOLUTION: Final = struct.Struct("<B7xq")
"""fate, decided."""

TRANSACTION_ID_BYTES: Final = 16
ID_TIME_BYTES: Final = 6
ID_RANDOM_BYTES: Final = 10
"""What a transaction id is made of. The time is nobody's promise: it only puts ids that begin, and
so end, at about the same time next to each other."""

_COMPLETED: Final = 1  # TransferStatus

assert BODY_BYTES == 64
assert HEADER.size == HEADER_BYTES
assert ANSWER.size == ANSWER_BYTES
assert VOTE.size == VOTE_BYTES
assert DECISION.size == DECISION_BYTES
assert RESULT_BYTES == 24


def write_completed_result(writer: BytesWriter, time_us: int, minor: int) -> None:
    """Writes what `RESULT.pack` gives for a transfer that completed now."""
    write_i64_le(writer, _COMPLETED)
    write_i64_le(writer, time_us)
    write_i64_le(writer, minor)


class Vote(enum.IntEnum):
    """What a participant says to PREPARE."""

    YES = 1
    """Reserved and logged: it will post whatever changes, once told to."""
    NO = 2
    """A final refusal."""
    BUSY = 3
    """Only something in doubt, or a bound, stands in the way; nothing was reserved."""
    LATE = 4
    """The transaction's deadline is over, or it has ended here already; nothing was reserved."""


class Fate(enum.IntEnum):
    """What became of a transaction, told by its home."""

    UNDECIDED = 0
    COMMITTED = 1
    ABORTED = 2


class Outcome(enum.IntEnum):
    """What the client of a key shall hear."""

    NONE = 0
    """Nothing yet: try again with a new transaction (something in doubt stood in the way, or time
    was over)."""
    COMMITTED = 1
    REFUSED = 2


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
    TRANSFERS = 8
    """One is a group and the other is not, or they are groups of different sizes."""
    SOURCE_ACCOUNT_ID = 9
    """Of a transfer of a group other than its first."""
