"""What is written down of each kind of answer, and what is left to be asked for again."""

import pytest

from doubloon import (
    Fault,
    FaultCode,
    Group,
    GroupResult,
    Refusal,
    RefusalReason,
    RetryClass,
    Transfer,
    TransferResult,
    TransferStatus,
)
from tests.history.book import Book, Item, Result
from tests.history.history import Fate

ID = b"0123456789abcdef"
GIFT = Transfer(1, 2, "GOLD", 5, transfer_id=ID)
SALE = Group([GIFT, Transfer(2, 3, "GOLD", 1)], ID)
LOST = Fault(FaultCode.UNAVAILABLE, indefinite=True)
AWAY = Fault(FaultCode.UNAVAILABLE)


def refused(reason: RefusalReason, retry: RetryClass) -> TransferResult:
    return TransferResult(ID, TransferStatus.REFUSED, 7, 9, refusal=Refusal(reason, retry))


FUNDS = Refusal(RefusalReason.INSUFFICIENT_FUNDS, RetryClass.NEW_KEY)
COMPLETED = TransferResult(ID, TransferStatus.COMPLETED, 7, 9)
POSTING = TransferResult(ID, TransferStatus.COMMITTED_POSTING, 7, 9)


@pytest.mark.parametrize(
    ("item", "heard", "fate", "is_open"),
    [
        (GIFT, COMPLETED, Fate.COMPLETED, False),
        (GIFT, POSTING, Fate.COMMITTED, True),
        (GIFT, refused(FUNDS.reason, FUNDS.retry_class), Fate.REFUSED, False),
        (GIFT, refused(RefusalReason.KEY_REUSED, RetryClass.NEVER), Fate.REUSED, False),
        (GIFT, refused(RefusalReason.BAD_AMOUNT, RetryClass.NEVER), Fate.NOTHING, False),
        (GIFT, refused(RefusalReason.UNKNOWN_CURRENCY, RetryClass.SAME_KEY), Fate.NOTHING, False),
        (GIFT, LOST, Fate.UNKNOWN, True),
        (GIFT, AWAY, Fate.NOTHING, False),
        (GIFT, TransferResult(ID, TransferStatus.FAULT, fault=LOST), Fate.UNKNOWN, True),
        (SALE, GroupResult(ID, TransferStatus.COMPLETED, 7, 9), Fate.COMPLETED, False),
    ],
)
def test_what_an_answer_says(
    *, item: Item, heard: Result | Fault, fate: Fate, is_open: bool
) -> None:
    book = Book()
    book.hear(item, 10, 20, heard)
    (one,) = book.history.tries
    assert (one.key, one.invoked_ns, one.answered_ns, one.fate) == ((1, ID), 10, 20, fate)
    assert bool(book.doubts) == is_open


def test_a_refused_group_names_its_member() -> None:
    book = Book()
    book.hear(SALE, 1, 2, GroupResult(ID, TransferStatus.REFUSED, refusal=FUNDS, refused_index=1))
    (one,) = book.history.tries
    assert (one.fate, one.reason, one.member) == (Fate.REFUSED, FUNDS.reason, 1)


def test_a_doubt_lasts_until_an_answer_speaks_for_the_key() -> None:
    book = Book()
    for heard, doubts in ((LOST, 1), (AWAY, 1), (POSTING, 1), (COMPLETED, 0), (AWAY, 0)):
        book.hear(GIFT, 1, 2, heard)
        assert len(book.doubts) == doubts
