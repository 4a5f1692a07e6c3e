"""What is made quickly is what its class makes."""

import copy
import pickle
from dataclasses import FrozenInstanceError

import pytest

from doubloon import Transfer, TransferResult, TransferStatus, TransferType
from doubloon.quick import maker_of

ID = bytes(range(16))


def test_what_is_made_quickly_equals_what_the_class_makes() -> None:
    make = maker_of(TransferResult)
    for arguments in ((ID, TransferStatus.COMPLETED), (ID, TransferStatus.COMPLETED, 5, -6, True)):
        quick, slow = make(*arguments), TransferResult(*arguments)
        assert type(quick) is TransferResult
        assert quick == slow
        assert hash(quick) == hash(slow)
        assert repr(quick) == repr(slow)
        assert copy.copy(quick) == slow
        assert pickle.loads(pickle.dumps(quick)) == slow


def test_what_is_made_quickly_is_frozen() -> None:
    made = maker_of(TransferResult)(ID, TransferStatus.COMPLETED)
    with pytest.raises(FrozenInstanceError):
        made.time_us = 1  # type: ignore[misc] # that is the point


def test_defaults_are_made_for_each() -> None:
    make = maker_of(Transfer)
    one, other = make(1, 2, "GOLD", 3), make(1, 2, "GOLD", 3, type=TransferType.SALE)
    assert one.type is TransferType.TRANSFER
    assert other.type is TransferType.SALE
    assert one.transfer_id < other.transfer_id
