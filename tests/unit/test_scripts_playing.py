"""Sending batches in order and counting what became of them; durations and their percentiles."""

from collections.abc import Sequence

import pytest

from doubloon import (
    AsyncClient,
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
    Unavailable,
)
from scripts.latency import Latencies
from scripts.playing import SAMPLES_MAX, Tally, make, play
from tests.support.wallet import FakeWallet, serving

POOR = Refusal(RefusalReason.INSUFFICIENT_FUNDS, RetryClass.NEW_KEY)
REUSED = Refusal(RefusalReason.KEY_REUSED, RetryClass.NEVER, "amount_minor")
MALFORMED = Fault(FaultCode.INVALID_ARGUMENT, "is not a code", "currency")
IN_DOUBT = Fault(FaultCode.DEADLINE_EXCEEDED, "no answer in time", indefinite=True)


def transfer(reference: int = 0) -> Transfer:
    return Transfer(1, 2, "GOLD", 5, reference=reference)


def answer(
    asked: Transfer, what: Refusal | Fault | None, *, repeat: bool = False
) -> TransferResult:
    id_ = asked.transfer_id
    if isinstance(what, Fault):
        return TransferResult(id_, TransferStatus.FAULT, fault=what)
    if isinstance(what, Refusal):
        return TransferResult(id_, TransferStatus.REFUSED, repeat=repeat, refusal=what)
    return TransferResult(id_, TransferStatus.COMPLETED, repeat=repeat)


class Answers:
    """A cluster that answers by a script: what it says to each reference, and when it is away."""

    def __init__(self, scripted: dict[int, Refusal | Fault], away_at: int = -1) -> None:
        self.scripted = scripted
        self.away_at = away_at
        self.asked: list[int] = []

    async def __call__(self, batch: Sequence[Transfer]) -> list[TransferResult]:
        if any(each.reference == self.away_at for each in batch):
            raise Unavailable(Fault(FaultCode.UNAVAILABLE, "nobody there", indefinite=True))
        self.asked += [each.reference for each in batch]
        return [answer(each, self.scripted.get(each.reference)) for each in batch]


def batches_of(size: int, count: int) -> list[list[Transfer]]:
    made = [transfer(reference) for reference in range(count)]
    return [made[start : start + size] for start in range(0, count, size)]


async def test_every_batch_is_sent_in_order_and_counted() -> None:
    cluster, tally, advanced = Answers({3: POOR, 4: MALFORMED}), Tally(), list[int]()
    await play(cluster, batches_of(2, 7), tally, advanced.append)
    assert cluster.asked == list(range(7))
    assert advanced == [2, 2, 2, 1]
    assert (tally.completed, tally.repeats, tally.sent) == (5, 0, 7)
    assert tally.refused == {RefusalReason.INSUFFICIENT_FUNDS: 1}
    assert tally.faulted == {FaultCode.INVALID_ARGUMENT: 1}
    assert tally.stopped == "", "a definite fault of one transfer stops nothing"
    whys = [why for _, why in tally.samples]
    assert whys == ["INSUFFICIENT_FUNDS", "INVALID_ARGUMENT currency is not a code"]


async def test_nothing_is_sent_after_doubt() -> None:
    cluster, tally = Answers({2: IN_DOUBT}), Tally()
    await play(cluster, batches_of(2, 6), tally)
    assert cluster.asked == [0, 1, 2, 3]
    assert (tally.completed, tally.sent) == (3, 4)
    assert tally.stopped == "DEADLINE_EXCEEDED: no answer in time"


async def test_nothing_is_sent_after_a_call_that_failed() -> None:
    cluster, tally = Answers({}, away_at=2), Tally()
    await play(cluster, batches_of(2, 6), tally)
    assert cluster.asked == [0, 1]
    assert tally.stopped == "UNAVAILABLE: nobody there"


@pytest.mark.parametrize(
    ("what", "repeat", "counted"),
    [
        (None, False, "completed"),
        (None, True, "repeats"),
        (POOR, False, "refused"),
        (POOR, True, "repeats"),
        (REUSED, False, "refused"),
        (MALFORMED, False, "faulted"),
    ],
)
def test_each_outcome_is_counted_once(
    *, what: Refusal | Fault | None, repeat: bool, counted: str
) -> None:
    tally, asked = Tally(), transfer()
    tally.add(asked, answer(asked, what, repeat=repeat))
    counts = {
        "completed": tally.completed,
        "repeats": tally.repeats,
        "refused": tally.refused.total(),
        "faulted": tally.faulted.total(),
    }
    assert {name for name, count in counts.items() if count} == {counted}
    assert tally.sent == 1


def test_samples_are_few_and_name_the_differing_field() -> None:
    tally = Tally()
    for reference in range(SAMPLES_MAX + 5):
        asked = transfer(reference)
        tally.add(asked, answer(asked, REUSED))
    assert len(tally.samples) == SAMPLES_MAX
    assert tally.samples[0][1] == "KEY_REUSED (amount_minor differs)"


def group(reference: int, count: int = 2) -> Group:
    return Group([transfer(reference) for _ in range(count)])


async def test_transfers_and_groups_are_made_together_and_answered_in_order() -> None:
    wallet = FakeWallet()
    wallet.open(1, floor_minor=-(10**12))
    wallet.open(2)
    batch: list[Transfer | Group] = [
        transfer(1),
        group(2),
        group(3),
        transfer(4),
        *map(group, range(2_000)),
    ]
    async with serving(wallet) as address, AsyncClient(address) as client:
        results = await make(client, batch)
    asked = [each.group_id if isinstance(each, Group) else each.transfer_id for each in batch]
    assert [
        each.group_id if isinstance(each, GroupResult) else each.transfer_id for each in results
    ] == asked
    assert all(each.completed for each in results)
    assert wallet.calls == {"TransferBatch": 1, "TransferGroupBatch": 2}
    tally = Tally()
    for item, result in zip(batch, results, strict=True):
        tally.add(item, result)
    assert (tally.completed, tally.sent) == (2_004, 2_004)


@pytest.mark.parametrize(
    ("count", "percent", "expected_ms"),
    [(0, 50, 0), (1, 50, 1), (1, 99, 1), (2, 50, 1), (3, 50, 2), (100, 99, 99), (101, 99, 100),
     (100, 100, 100)],
)  # fmt: skip
def test_percentiles_are_of_the_nearest_rank(count: int, percent: int, expected_ms: int) -> None:
    measured = Latencies([milliseconds / 1_000 for milliseconds in range(count, 0, -1)])
    assert measured.percentile_ms(percent) == pytest.approx(expected_ms)
