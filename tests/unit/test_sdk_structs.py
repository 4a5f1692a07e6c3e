"""Transfers and results are values: frozen, comparable, copied and pickled like any other."""

import copy
import gc
import pickle

import pytest
from msgspec import Struct, structs

from doubloon import HourPoint, Transfer, TransferResult, TransferStatus, TransferType

ID = bytes(range(16))
RESULT = TransferResult(ID, TransferStatus.COMPLETED, 5, -6, repeat=True)


@pytest.mark.parametrize(
    "value", [Transfer(1, 2, "GOLD", 3), RESULT, HourPoint(3_600_000_000, 1, 2, 3)]
)
def test_they_are_values(value: Struct) -> None:
    for twin in (copy.copy(value), pickle.loads(pickle.dumps(value)), structs.replace(value)):
        assert type(twin) is type(value)
        assert twin == value
        assert hash(twin) == hash(value)
        assert repr(twin) == repr(value)
    assert not gc.is_tracked(value), "a collector that looks at thousands of them takes long"


def test_they_are_frozen() -> None:
    with pytest.raises(AttributeError):
        RESULT.time_us = 1  # type: ignore[misc] # that is the point
    assert structs.replace(RESULT, time_us=1).time_us == 1
    assert RESULT.time_us == 5


def test_each_transfer_has_an_id_of_its_own() -> None:
    one, other = Transfer(1, 2, "GOLD", 3), Transfer(1, 2, "GOLD", 3, type=TransferType.SALE)
    assert one.type is TransferType.TRANSFER
    assert other.type is TransferType.SALE
    assert one.transfer_id < other.transfer_id
