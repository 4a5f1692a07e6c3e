"""The CSV of transfers: what each column becomes, and what is said of a row that is wrong."""

import uuid
from pathlib import Path

import pytest

from doubloon import TransferType
from scripts.replay_file import ReplayFileError, count_transfers, read_transfers, transfer_id_of

HEADER = "id,source_account_id,destination_account_id,currency,amount_minor"
ALL = HEADER + ",type,reference,metadata,time"


def write(tmp_path: Path, *lines: str) -> Path:
    path = tmp_path / "transfers.csv"
    path.write_text("".join(line + "\n" for line in lines), encoding="utf-8")
    return path


def test_every_column(tmp_path: Path) -> None:
    row = 'order 17,1,2,GOLD,1250,PURCHASE,99,"a ""quoted"" word",2026-03-01T12:00:00+01:00'
    (transfer,) = read_transfers(write(tmp_path, ALL, row))
    assert (transfer.source, transfer.destination) == (1, 2)
    assert (transfer.currency, transfer.amount_minor) == ("GOLD", 1250)
    assert (transfer.type, transfer.reference) == (TransferType.PURCHASE, 99)
    assert transfer.metadata == b'a "quoted" word'
    assert transfer.import_time_us == 1_772_362_800_000_000
    assert transfer.transfer_id == transfer_id_of("order 17")


def test_absent_and_empty_optional_columns_are_the_same(tmp_path: Path) -> None:
    (short,) = read_transfers(write(tmp_path, HEADER, "a,1,2,GOLD,5"))
    (empty,) = read_transfers(write(tmp_path, ALL, "a,1,2,GOLD,5,,,,"))
    assert short == empty
    assert short.type is TransferType.TRANSFER
    assert (short.reference, short.metadata, short.import_time_us) == (0, b"", 0)


def test_columns_in_any_order_with_a_byte_order_mark_and_empty_lines(tmp_path: Path) -> None:
    header = "\ufeffcurrency,amount_minor,destination_account_id,source_account_id,id"
    (transfer,) = read_transfers(write(tmp_path, header, "", "GOLD,5,2,1,a"))
    assert (transfer.source, transfer.destination, transfer.amount_minor) == (1, 2, 5)


def test_ids_depend_on_the_text_alone() -> None:
    given = uuid.UUID("01890a5d-ac96-774b-bcce-b302099a8057")
    assert transfer_id_of(str(given)) == given.bytes == transfer_id_of(str(given).upper())
    assert transfer_id_of("order 17") == transfer_id_of("order 17") != transfer_id_of("order 18")
    assert transfer_id_of(given.hex) != given.bytes, "only the usual spelling is taken as it is"
    assert len(transfer_id_of("é")) == 16


@pytest.mark.parametrize(
    ("row", "said"),
    [
        (",1,2,GOLD,5,,,,", "id: must not be empty"),
        ("a,x,2,GOLD,5,,,,", "source_account_id: 'x' is not a whole number"),
        ("a,0,2,GOLD,5,,,,", "source_account_id: 0 is not within"),
        (f"a,1,{2**63},GOLD,5,,,,", "destination_account_id: 9223372036854775808 is not within"),
        ("a,1,2,,5,,,,", "currency: must not be empty"),
        ("a,1,2,GOLD,1.5,,,,", "amount_minor: '1.5' is not a whole number"),
        ("a,1,2,GOLD,5,BRIBE,,,", "type: 'BRIBE' is not one of TRANSFER, PURCHASE"),
        ("a,1,2,GOLD,5,UNSPECIFIED,,,", "type: 'UNSPECIFIED' is not one of"),
        ("a,1,2,GOLD,5,,-1,,", "reference: -1 is not within"),
        (f"a,1,2,GOLD,5,,,{'x' * 257},", "metadata: 257 bytes, at most 256"),
        ("a,1,2,GOLD,5,,,,yesterday", "time: 'yesterday' is not a time such as"),
        ("a,1,2,GOLD,5", "has 5 columns, the first line 9"),
    ],
)
def test_a_wrong_row_is_named_with_its_line_and_column(tmp_path: Path, row: str, said: str) -> None:
    path = write(tmp_path, ALL, "fine,1,2,GOLD,5,,,,", row)
    with pytest.raises(ReplayFileError) as raised:
        count_transfers(path)
    assert str(raised.value).startswith(f"{path}, line 3: {said}")


@pytest.mark.parametrize(
    ("header", "said"),
    [
        ("", "columns are missing: id, source_account_id"),
        ("id,currency", "columns are missing: source_account_id, destination_account_id"),
        (HEADER + ",colour", "unknown columns: 'colour'"),
        (HEADER + ",id", "a column is named twice"),
    ],
)
def test_a_wrong_header_is_named(tmp_path: Path, header: str, said: str) -> None:
    with pytest.raises(ReplayFileError, match="line [01]: " + said):
        count_transfers(write(tmp_path, header))


def test_counting_checks_every_row(tmp_path: Path) -> None:
    assert count_transfers(write(tmp_path, HEADER, "a,1,2,GOLD,5", "b,1,2,GOLD,5")) == 2
