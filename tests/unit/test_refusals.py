"""The refusal enum mirrors the wire contract, and every reason has its retry class."""

import re
from pathlib import Path

import pytest

from cluster.refusals import RefusalReason, RetryClass, is_recorded, retry_class
from doubloon.v1 import types_pb2

CONTRACT = Path(__file__).parents[2] / "proto" / "doubloon" / "v1" / "types.proto"

RETRY_CLASSES = {
    RefusalReason.BAD_AMOUNT: RetryClass.NEVER,
    RefusalReason.SAME_ACCOUNT: RetryClass.NEVER,
    RefusalReason.UNKNOWN_CURRENCY: RetryClass.SAME_KEY,
    RefusalReason.KEY_REUSED: RetryClass.NEVER,
    RefusalReason.SOURCE_UNKNOWN: RetryClass.NEW_KEY,
    RefusalReason.DESTINATION_UNKNOWN: RetryClass.NEW_KEY,
    RefusalReason.SOURCE_CLOSED: RetryClass.NEW_KEY,
    RefusalReason.DESTINATION_CLOSED: RetryClass.NEW_KEY,
    RefusalReason.SOURCE_FROZEN: RetryClass.NEW_KEY,
    RefusalReason.DESTINATION_FROZEN: RetryClass.NEW_KEY,
    RefusalReason.IMPORT_IN_FUTURE: RetryClass.SAME_KEY,
    RefusalReason.IMPORT_TOO_OLD: RetryClass.NEVER,
    RefusalReason.INSUFFICIENT_FUNDS: RetryClass.NEW_KEY,
    RefusalReason.BALANCE_CAP_EXCEEDED: RetryClass.NEW_KEY,
}


def test_reasons_are_those_of_the_contract() -> None:
    ours = {f"REFUSAL_REASON_{reason.name}": reason.value for reason in RefusalReason}
    theirs = dict(types_pb2.RefusalReason.items())
    assert theirs.pop("REFUSAL_REASON_UNSPECIFIED") == 0
    assert ours == theirs


def test_retry_classes_are_those_of_the_contract() -> None:
    ours = {f"RETRY_CLASS_{kind.name}": kind.value for kind in RetryClass}
    theirs = dict(types_pb2.RetryClass.items())
    assert theirs.pop("RETRY_CLASS_UNSPECIFIED") == 0
    assert ours == theirs


def test_table_covers_every_reason() -> None:
    assert set(RETRY_CLASSES) == set(RefusalReason)


@pytest.mark.parametrize("reason", RefusalReason, ids=lambda reason: reason.name)
def test_retry_class(reason: RefusalReason) -> None:
    assert retry_class(reason) is RETRY_CLASSES[reason]
    assert is_recorded(reason) == (RETRY_CLASSES[reason] is RetryClass.NEW_KEY)


def test_retry_class_is_what_the_contract_says_beside_each_reason() -> None:
    said = {
        match["name"]: match["comment"].rpartition(".")[0]
        for match in re.finditer(
            r"(?P<comment>(?: *//.*\n)+) *REFUSAL_REASON_(?P<name>\w+) = [1-9]",
            CONTRACT.read_text(encoding="utf-8"),
        )
    }
    wording = {
        RetryClass.NEVER: "Never retry",
        RetryClass.SAME_KEY: "Retry with the same key",
        RetryClass.NEW_KEY: "Retry with a new key",
    }
    assert said.keys() == {reason.name for reason in RefusalReason}
    for reason in RefusalReason:
        assert wording[retry_class(reason)] in said[reason.name], reason.name
