"""What shards owe each other: the arithmetic, against a simulation, and the questions asked."""

import random
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field

import grpc
import pytest

from cluster.faults import Fault
from cluster.packed import Fate as PackedFate
from doubloon.v1 import admin_service_pb2 as admin
from doubloon.v1 import shard_service_pb2 as shard
from router.audit import (
    Crossing,
    Fate,
    Findings,
    Leg,
    Pair,
    PairAudit,
    Snapshot,
    audit,
    differing,
    whole_second,
)
from tests.support.routers import NOW_US, Call, Router, router
from tests.support.virtual_time import virtual_time

AS_OF_US = 1_000
GOLD, GEMS = "GOLD", "GEMS"
COMMITTED, TOO_LATE = Fate(AS_OF_US - 1, aborted=False), Fate(AS_OF_US, aborted=False)
UNDECIDED, ABORTED = Fate(0, aborted=False), Fate(0, aborted=True)
TXN, OTHER = bytes(15) + b"\1", bytes(15) + b"\2"


def leg(transaction_id: bytes = TXN, amount_minor: int = -5, peer: int = 1) -> Leg:
    return Leg(transaction_id, 1, 9, peer, GOLD, amount_minor)


def two(ours: int, theirs: int, *legs: Leg) -> dict[int, Snapshot]:
    """Shards 1 and 2 with these positions, shard 2 with these legs."""
    return {1: Snapshot({(2, GOLD): ours}, ()), 2: Snapshot({(1, GOLD): theirs}, legs)}


def found(
    ours: int, theirs: int, unposted_minor: int = 0, *unposted: bytes
) -> tuple[PairAudit, ...]:
    return (PairAudit(Pair(1, 2, GOLD), ours, theirs, unposted_minor, frozenset(unposted)),)


@pytest.mark.parametrize(
    ("second", "third", "fates", "pairs", "in_doubt"),
    [
        pytest.param(two(7, -7), two(7, -7), {}, found(7, -7), 0, id="quiet"),
        pytest.param(
            two(7, -2, leg()), two(7, -2, leg()), {TXN: COMMITTED}, found(7, -7, 5, TXN), 0,
            id="decided and not posted",
        ),
        pytest.param(
            two(7, -7, leg()), two(7, -7, leg()), {TXN: UNDECIDED}, found(7, -7), 1,
            id="in doubt on one side",
        ),
        pytest.param(
            two(7, -7, leg()), two(7, -7, leg()), {TXN: TOO_LATE}, found(7, -7), 1,
            id="decided at the time itself, which is too late",
        ),
        pytest.param(
            two(7, -7, leg()), two(7, -7, leg()), {TXN: ABORTED}, found(7, -7), 0,
            id="aborted and not dropped yet",
        ),
        pytest.param(
            two(7, -2, leg()), two(7, -7), {TXN: COMMITTED}, found(7, -7), 0,
            id="posted since it was seen",
        ),
        pytest.param(
            two(7, -2, leg()), two(7, -7), {TXN: UNDECIDED}, found(7, -7), 0,
            id="posted, and forgotten by its home before it was asked",
        ),
        pytest.param(
            two(7, -7), two(7, -7, leg()), {}, found(7, -7), 0, id="prepared since",
        ),
        pytest.param(
            two(10, 0, leg(), leg()), two(10, 0, leg(), leg()), {TXN: COMMITTED},
            found(10, -10, 10, TXN), 0, id="two equal legs of a group",
        ),
        pytest.param(
            two(7, -7, leg(), leg(OTHER)), two(7, -7, leg(), leg(OTHER)),
            {TXN: UNDECIDED, OTHER: UNDECIDED}, found(7, -7), 2, id="two in doubt",
        ),
        pytest.param(two(7, -6), two(7, -6), {}, found(7, -6), 0, id="a difference"),
        pytest.param(
            {1: Snapshot({}, ()), 2: Snapshot({(1, GOLD): 3}, ())},
            {1: Snapshot({}, ()), 2: Snapshot({(1, GOLD): 3}, ())},
            {}, found(0, 3), 0, id="a position that the other has not",
        ),
        pytest.param(
            {1: Snapshot({}, ()), 2: Snapshot({}, ())}, {1: Snapshot({}, ()), 2: Snapshot({}, ())},
            {}, (), 0, id="nothing",
        ),
    ],
)  # fmt: skip
def test_an_audit(
    second: dict[int, Snapshot],
    third: dict[int, Snapshot],
    fates: dict[bytes, Fate],
    pairs: tuple[PairAudit, ...],
    in_doubt: int,
) -> None:
    assert audit(second, third, fates, AS_OF_US) == Findings(pairs, in_doubt)


def test_pairs_are_ordered_and_each_counts_by_itself() -> None:
    look = {
        3: Snapshot({(1, GOLD): -1, (2, GEMS): 2**70}, ()),
        1: Snapshot({(3, GOLD): 1, (2, GOLD): 4}, ()),
        2: Snapshot({(3, GEMS): -(2**70), (1, GOLD): -3}, ()),
    }
    pairs = audit(look, look, {}, AS_OF_US).pairs
    assert [each.pair for each in pairs] == [(1, 2, GOLD), (1, 3, GOLD), (2, 3, GEMS)]
    assert [each.balanced for each in pairs] == [False, True, True]


@dataclass
class Site:
    """A shard of the simulation: what it has prepared, posted and decided."""

    prepared: dict[bytes, list[Leg]] = field(default_factory=dict)
    posted: list[tuple[Leg, int]] = field(default_factory=list)
    decided: dict[bytes, int] = field(default_factory=dict)
    clock_us: int = 0

    def look(self, as_of_us: int) -> Snapshot:
        self.clock_us = max(self.clock_us, as_of_us)
        positions: Counter[tuple[int, str]] = Counter()
        for each, decided_us in self.posted:
            if decided_us < as_of_us:
                positions[each.peer, each.currency] += each.amount_minor
        return Snapshot(positions, [each for legs in self.prepared.values() for each in legs])


def traffic(sites: dict[int, Site], rng: random.Random) -> Iterator[None]:
    """Run transactions for ever, interleaved at random, a step of one of them at a time."""

    def transaction(number: int) -> Iterator[None]:
        home, *others = rng.sample(sorted(sites), rng.randrange(2, len(sites) + 1))
        transaction_id = number.to_bytes(16, "big")
        amount = rng.randrange(1, 10)
        for other in others:
            legs = [Leg(transaction_id, home, 9, home, GOLD, -amount)]
            sites[other].prepared[transaction_id] = legs
            yield
        if rng.random() < 0.2:
            for other in others:
                del sites[other].prepared[transaction_id]
                yield
            return
        site = sites[home]
        site.clock_us += rng.randrange(1, 4)
        decided_us = site.decided[transaction_id] = site.clock_us
        site.posted += [
            (Leg(transaction_id, home, 9, other, GOLD, amount), decided_us) for other in others
        ]
        yield
        for other in others:
            legs = sites[other].prepared.pop(transaction_id)
            sites[other].posted += [(each, decided_us) for each in legs]
            sites[other].clock_us = max(sites[other].clock_us, decided_us)
            yield
        del site.decided[transaction_id]  # all have posted: the home forgets it

    running = [transaction(number) for number in range(8)]
    number = len(running)
    while True:
        place = rng.randrange(len(running))
        if next(running[place], running) is running:
            running[place] = transaction(number)
            number += 1
        yield


def test_no_false_alarm_whatever_happens_between_two_questions(rng: random.Random) -> None:
    for _ in range(600):
        sites = {shard_id: Site() for shard_id in (1, 2, 3)}
        steps = traffic(sites, rng)
        pace = rng.choice((3, 10, 30))

        def pass_time(steps: Iterator[None] = steps, pace: int = pace) -> None:
            for _ in range(rng.randrange(pace)):
                next(steps)

        def look(as_of_us: int, sites: dict[int, Site] = sites) -> dict[int, Snapshot]:
            said = {}
            for shard_id in rng.sample(sorted(sites), len(sites)):
                pass_time()
                said[shard_id] = sites[shard_id].look(as_of_us)
            return said

        for _ in range(rng.randrange(200)):
            next(steps)
        as_of_us = max(1, max(site.clock_us for site in sites.values()) + rng.randrange(-20, 20))
        look(as_of_us)
        second = look(as_of_us)
        fates = {}
        for each in [each for snapshot in second.values() for each in snapshot.legs]:
            pass_time()
            decided_us = sites[each.home].decided.get(each.transaction_id, 0)
            fates[each.transaction_id] = Fate(decided_us, aborted=False)
        findings = audit(second, look(as_of_us), fates, as_of_us)
        assert all(pair.balanced for pair in findings.pairs), findings


@pytest.mark.parametrize(
    ("ours", "theirs", "unposted", "expected"),
    [
        ([(TXN, 0, 5)], [(TXN, 0, -5)], (), {}),
        ([(TXN, 0, 5)], [], (), {TXN: 5}),
        ([], [(TXN, 0, -5)], (), {TXN: -5}),
        ([(TXN, 0, 5)], [], (TXN,), {}),
        ([(TXN, 0, 5)], [(TXN, 0, -4)], (), {TXN: 1}),
        # Posted twice on one side.
        ([(TXN, 0, 5)], [(TXN, 0, -5), (TXN, 0, -5)], (), {TXN: -5}),
        # Two wrongs in one group that add up to nothing are still named.
        ([(TXN, 0, 5), (TXN, 1, -5)], [], (), {TXN: 0}),
        ([(TXN, 0, 5), (OTHER, 0, 6)], [(TXN, 0, -5)], (), {OTHER: 6}),
    ],
)
def test_what_differs(
    ours: list[tuple[bytes, int, int]],
    theirs: list[tuple[bytes, int, int]],
    unposted: tuple[bytes, ...],
    expected: dict[bytes, int],
) -> None:
    said = differing(
        (Crossing(*each) for each in ours),
        (Crossing(*each) for each in theirs),
        frozenset(unposted),
    )
    assert said == expected


# Asked of shards


def clearing(
    position_minor: int, peer: int, *prepared: shard.PreparedLeg
) -> shard.GetClearingResponse:
    position = shard.ClearingPosition(
        peer_shard_id=peer, currency=GOLD, position_minor=str(position_minor)
    )
    return shard.GetClearingResponse(positions=[position], prepared=prepared)


def prepared(transaction_id: bytes, amount_minor: int) -> shard.PreparedLeg:
    return shard.PreparedLeg(
        transaction_id=transaction_id,
        home_shard_id=1,
        deadline_us=77,
        peer_shard_id=1,
        currency=GOLD,
        amount_minor=amount_minor,
    )


async def ask(it: Router, as_of_us: int = 0) -> admin.AuditResponse:
    return await it.admin.Audit(admin.AuditRequest(as_of_us=as_of_us), Call())


@virtual_time
async def test_every_shard_is_looked_at_three_times_at_one_whole_second() -> None:
    async with router() as it:
        response = await ask(it)
        expected_us = whole_second(NOW_US - 2_000_000)
        assert (response.as_of_us, response.balanced, response.in_doubt) == (expected_us, True, 0)
        assert not response.pairs
        for shard_id in (1, 2, 3):
            asked = it.cluster.node(shard_id).asked
            assert asked == [("GetClearing", shard.GetClearingRequest(as_of_us=expected_us))] * 3
        assert (await ask(it, 1_790_000_000_999_999)).as_of_us == 1_790_000_000_000_000


@virtual_time
async def test_a_home_says_what_counts_of_what_is_prepared() -> None:
    async with router() as it:
        decided_us = NOW_US - 3_000_000
        it.cluster.node(1).clearing = [clearing(9, 2)]
        it.cluster.node(2).clearing = [clearing(-4, 1, prepared(TXN, -5), prepared(OTHER, -8))]
        it.cluster.node(1).fates = {TXN: (PackedFate.COMMITTED, decided_us)}
        response = await ask(it)
        assert (response.balanced, response.in_doubt) == (True, 1)
        (pair,) = response.pairs
        assert (pair.shard_id, pair.peer_shard_id, pair.currency) == (1, 2, GOLD)
        assert (pair.position_minor, pair.peer_position_minor) == ("9", "-9")
        assert (pair.unposted_minor, pair.balanced) == ("5", True)


@virtual_time
async def test_a_mismatch_is_named_however_long_ago_it_happened() -> None:
    async with router() as it:
        it.cluster.node(1).clearing = [clearing(2**70, 2)]
        it.cluster.node(2).clearing = [clearing(5 - 2**70, 1)]
        half_us = 3_600_000_000
        it.cluster.node(1).crossings = [
            shard.Crossing(transaction_id=TXN, amount_minor=5, decided_us=NOW_US - half_us),
            shard.Crossing(transaction_id=OTHER, amount_minor=6, decided_us=half_us),
        ]
        it.cluster.node(2).crossings = [
            shard.Crossing(transaction_id=OTHER, amount_minor=-6, decided_us=half_us)
        ]
        response = await ask(it)
        assert not response.balanced
        (pair,) = response.pairs
        assert not pair.balanced
        assert list(pair.differing_transaction_ids) == [TXN]
        lists = defaultdict(list)
        for method, request in it.cluster.node(1).asked:
            lists[method].append(request)
        spans = [(each.after_us, each.to_us) for each in lists["ListCrossings"]]
        assert spans[0] == (response.as_of_us - 60_000_001, response.as_of_us - 1)
        assert len(spans) < 8, "it stops once all is explained"


@virtual_time
async def test_a_mismatch_that_no_shard_explains_is_told_all_the_same() -> None:
    async with router() as it:
        it.cluster.node(1).clearing = [clearing(5, 2)]

        async def fail(method: str) -> None:
            if method == "ListCrossings":
                raise Fault(grpc.StatusCode.FAILED_PRECONDITION, "too long ago")

        response = await ask(it)
        assert not response.balanced
        it.cluster.node(2).before = fail
        response = await ask(it)
        assert not response.balanced
        assert not response.pairs[0].differing_transaction_ids


@virtual_time
async def test_an_audit_is_not_claimed_without_every_shards_answer() -> None:
    async with router() as it:
        it.cluster.node(2).gone.set()
        with pytest.raises(Fault) as caught:
            await it.admin.Audit(admin.AuditRequest(), Call(3.0))
        assert caught.value.code is grpc.StatusCode.UNAVAILABLE


@virtual_time
async def test_a_time_before_1970_is_malformed() -> None:
    async with router() as it:
        with pytest.raises(Fault) as caught:
            await ask(it, -1)
        assert (caught.value.code, caught.value.field) == (
            grpc.StatusCode.INVALID_ARGUMENT,
            "as_of_us",
        )
