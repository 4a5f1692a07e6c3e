"""The CSV of transfers that `doubloon replay` plays.

Pure but for reading the file. The first line names the columns, in any order:

    id                      what makes the row unique among its source account's transfers: any
                            text. A UUID is taken as it is, anything else is hashed into one
    source_account_id       the account that pays
    destination_account_id  the account that is paid
    currency                a registered code
    amount_minor            minor units
    type                    TRANSFER, PURCHASE, SALE, REWARD, FEE, REFUND or ADJUSTMENT;
                            optional, TRANSFER when empty
    reference               the application's own number; optional
    metadata                the application's own text, at most 256 bytes; optional
    time                    ISO 8601: the past time at which it happened, which makes the row an
                            import; optional

The transfer's id depends on `id` alone. So a file can be replayed again after an interruption and
repeats what was done without doing it twice, and a row that was changed in between is refused.
"""

import csv
import uuid
from collections.abc import Iterator
from pathlib import Path

from doubloon import Transfer, TransferType
from scripts.units import parse_time_us

REQUIRED = ("id", "source_account_id", "destination_account_id", "currency", "amount_minor")
OPTIONAL = ("type", "reference", "metadata", "time")
METADATA_BYTES_MAX = 256

_NAMESPACE = uuid.UUID("6c9f0c1e-7b0d-5d6c-9a55-2f1d6a3f7f10")  # made once, for this purpose alone
_UINT64_MAX = 2**64 - 1
_INT64_MAX = 2**63 - 1


class ReplayFileError(ValueError):
    """The file is not one; the message names the line and the column."""


def read_transfers(path: Path) -> Iterator[Transfer]:
    """Yield the file's transfers in its order, reading as it goes.

    Raises:
        ReplayFileError: at the first row or header that is not as the module describes.
    """
    # utf-8-sig: spreadsheets put a mark of byte order in front.
    with path.open(newline="", encoding="utf-8-sig") as text:
        reader = csv.reader(text, strict=True)
        try:
            columns = _columns(next(reader, []))
            for fields in reader:
                if fields:
                    yield _transfer(columns, fields)
        except (ValueError, csv.Error) as error:
            raise ReplayFileError(f"{path}, line {reader.line_num}: {error}") from error


def count_transfers(path: Path) -> int:
    """Return how many transfers the file holds, having checked every one of them.

    Raises:
        ReplayFileError: as `read_transfers`.
    """
    return sum(1 for _ in read_transfers(path))


def transfer_id_of(text: str) -> bytes:
    """Return the 16 bytes that stand for a row's `id`."""
    try:
        given = uuid.UUID(text)
    except ValueError:
        return uuid.uuid5(_NAMESPACE, text).bytes
    return given.bytes if str(given) == text.lower() else uuid.uuid5(_NAMESPACE, text).bytes


def _columns(header: list[str]) -> list[str]:
    names = [name.strip() for name in header]
    if missing := [name for name in REQUIRED if name not in names]:
        raise ValueError(f"columns are missing: {', '.join(missing)}")
    if unknown := [name for name in names if name not in REQUIRED + OPTIONAL]:
        raise ValueError(f"unknown columns: {', '.join(map(repr, unknown))}")
    if len(set(names)) != len(names):
        raise ValueError("a column is named twice")
    return names


def _transfer(columns: list[str], fields: list[str]) -> Transfer:
    if len(fields) != len(columns):
        raise ValueError(f"has {len(fields)} columns, the first line {len(columns)}")
    row = dict(zip(columns, fields, strict=True))
    if not row["id"]:
        raise ValueError("id: must not be empty")
    if not row["currency"].strip():
        raise ValueError("currency: must not be empty")
    metadata = row.get("metadata", "").encode()
    if len(metadata) > METADATA_BYTES_MAX:
        raise ValueError(f"metadata: {len(metadata)} bytes, at most {METADATA_BYTES_MAX}")
    time = row.get("time", "").strip()
    try:
        time_us = parse_time_us(time) if time else 0
    except ValueError as error:
        raise ValueError(f"time: {error}") from error
    return Transfer(
        transfer_id=transfer_id_of(row["id"]),
        source=_number(row, "source_account_id", 1, _INT64_MAX),
        destination=_number(row, "destination_account_id", 1, _INT64_MAX),
        currency=row["currency"].strip(),
        # Whether an amount is one that can be moved is the cluster's to say.
        amount_minor=_number(row, "amount_minor", -_INT64_MAX, _INT64_MAX),
        type=_type(row.get("type", "").strip()),
        reference=_number(row, "reference", 0, _UINT64_MAX) if row.get("reference") else 0,
        metadata=metadata,
        import_time_us=time_us,
    )


def _number(row: dict[str, str], column: str, low: int, high: int) -> int:
    try:
        number = int(row[column])
    except ValueError:
        raise ValueError(f"{column}: {row[column]!r} is not a whole number") from None
    if not low <= number <= high:
        raise ValueError(f"{column}: {number} is not within {low} … {high}")
    return number


def _type(name: str) -> TransferType:
    known = [value.name for value in TransferType if value]
    if (name or "TRANSFER") not in known:
        raise ValueError(f"type: {name!r} is not one of {', '.join(known)}")
    return TransferType[name or "TRANSFER"]
