"""The parts of the benchmark suite that could flatter or mislead: loads, rates, bars, fleets."""

import asyncio
import collections
import math
import random
from typing import Any
from xml.etree import ElementTree as ET

import pytest

from cluster.packed import BODY, RESULT
from cluster.topology import Topology
from doubloon.v1 import shard_service_pb2, types_pb2, wallet_service_pb2
from scripts.bench import fleet, load, report
from scripts.bench.cases.floors import echo_server
from scripts.bench.cases.growth import growth_percent
from scripts.bench.cases.unary import METHOD
from scripts.bench.drive import Timeline, drive, in_thread
from scripts.bench.http2 import UnaryLoad, WireError
from scripts.bench.pictures import draw
from scripts.bench.results import FORMAT, Bar, Figure, Outcome, Usage
from scripts.bench.rig import NotCompletedError, completed_of

ACCOUNTS = 500
COMPLETED = int(types_pb2.TRANSFER_STATUS_COMPLETED)


def test_packed_bodies_are_what_the_ledger_reads(seed: int) -> None:
    packed = load.bodies(load.Draw(ACCOUNTS, "uniform", seed), 300, "uuid7", currency=3)
    ids = set()
    for at in range(0, len(packed), BODY.size):
        body = BODY.unpack(packed[at : at + BODY.size])
        transfer_id, source, destination, amount, reference, import_time, currency, *rest = body
        assert transfer_id[6] >> 4 == 7, "a UUID of version 7"
        assert transfer_id[8] >> 6 == 0b10, "of the standard's variant"
        assert 1 <= source <= ACCOUNTS
        assert 1 <= destination <= ACCOUNTS
        assert source != destination
        assert 1 <= amount <= load.AMOUNT_MAX_MINOR
        assert (reference, import_time, currency) == (0, 0, 3)
        assert rest == [0, int(types_pb2.TRANSFER_TYPE_TRANSFER)]
        ids.add(transfer_id)
    assert len(ids) == 300
    assert packed[9 * 64 + 63] == 0


def test_requests_are_the_contracts_messages(seed: int) -> None:
    draw_ = load.Draw(ACCOUNTS, "zipf", seed)
    packed = load.bodies(draw_, 25, "random", 1)
    requests = load.packed_requests(packed, 10)
    read = [shard_service_pb2.ExecuteTransfersRequest.FromString(each) for each in requests]
    assert [len(each.bodies) // BODY.size for each in read] == [10, 10, 5]
    assert b"".join(each.bodies for each in read) == packed
    for message in load.unary_requests(draw_, 20, "uuid7"):
        transfer = wallet_service_pb2.TransferRequest.FromString(message).transfer
        assert len(transfer.transfer_id) == 16
        assert transfer.source_account_id != transfer.destination_account_id
        assert transfer.currency == load.CURRENCY


def test_zipf_makes_the_first_account_as_busy_as_the_law_says(seed: int) -> None:
    count = 40_000
    source, destination = load.Draw(ACCOUNTS, "zipf", seed).pairs(count)
    weights = [rank**-load.ZIPF_EXPONENT for rank in range(1, ACCOUNTS + 1)]
    expected = weights[0] / sum(weights)
    for drawn in (source, destination):
        share = collections.Counter(drawn.tolist())[1] / count
        # Destinations give way to a source that is the same, so theirs is a little less.
        assert math.isclose(share, expected, rel_tol=0.25)


@pytest.mark.parametrize("crossing", [0.0, 0.5, 1.0])
def test_as_much_crosses_as_was_asked_for(*, crossing: float, seed: int) -> None:
    topology = Topology.even(range(1, 4))
    made = load.Draw(ACCOUNTS, "zipf", seed, topology, crossing)
    source, destination = (each.tolist() for each in made.pairs(4_000))
    crossed = sum(
        topology.shard_of(one) != topology.shard_of(other)
        for one, other in zip(source, destination, strict=True)
    )
    assert math.isclose(crossed / 4_000, crossing, abs_tol=0.05)


def test_the_same_seed_draws_the_same(seed: int) -> None:
    first, second = (load.Draw(ACCOUNTS, "zipf", seed).pairs(50) for _ in range(2))
    assert [each.tolist() for each in first] == [each.tolist() for each in second]


def test_stretches_follow_each_other_without_a_pause() -> None:
    timeline = Timeline(10.0, [(11.0, 100), (12.0, 100), (14.0, 100), (16.0, 100), (17.0, 9)])
    assert timeline.rates(2) == [100.0, 50.0]
    assert timeline.transfers == 409
    assert timeline.seconds == 7.0


async def test_drive_keeps_so_many_in_flight_and_counts_everything(rng: random.Random) -> None:
    jobs = [rng.randrange(1, 9) for _ in range(50)]
    flying, most = 0, 0

    async def send(job: int) -> int:
        nonlocal flying, most
        flying += 1
        most = max(most, flying)
        for _ in range(job):
            await asyncio.sleep(0)
        flying -= 1
        return job

    advanced: list[int] = []

    def advance(count: int) -> None:
        advanced.append(count)

    timeline = await drive(jobs, send, 6, advance)
    assert most == 6
    assert timeline.transfers == sum(jobs) == sum(advanced)
    assert len(timeline.latencies.durations_s) == len(jobs)


def _answer(*statuses: int) -> bytes:
    results = b"".join(RESULT.pack(status, 0, 0, 0, 1, 1) for status in statuses)
    return shard_service_pb2.ExecuteTransfersResponse(results=results).SerializeToString()


def test_a_batch_counts_only_when_all_of_it_was_completed() -> None:
    assert completed_of(_answer(*[COMPLETED] * 3)) == 3
    with pytest.raises(NotCompletedError):
        completed_of(_answer(COMPLETED, COMPLETED + 1, COMPLETED))


async def test_raw_calls_are_answered_by_a_real_server(seed: int) -> None:
    messages = list(load.unary_requests(load.Draw(ACCOUNTS, "uniform", seed), 300, "uuid7"))
    async with echo_server() as (address, _):
        calls = UnaryLoad([address], METHOD, messages, 7)
        try:
            made = await in_thread(calls.run)
        finally:
            calls.close()
        assert len(made.ends) == len(made.durations_s) == 300
        unknown = UnaryLoad([address], "/doubloon.v1.WalletService/Gone", messages[:1], 1)
        try:
            with pytest.raises(WireError, match=r"not completed.*'grpc-status': '12'"):
                await in_thread(unknown.run)
        finally:
            unknown.close()


@pytest.mark.parametrize(
    ("direction", "value", "is_met"),
    [("at least", 9.9, False), ("at least", 10, True), ("at most", 10, True),
     ("at most", 10.1, False)],
)  # fmt: skip
def test_bars(*, direction: Any, value: float, is_met: bool) -> None:
    assert Bar("1", direction, 10).met_by(value) is is_met


def test_costs_add_up_by_role() -> None:
    usage = Usage(2.0, 1_000, 50, cpu_s={"router-1": 0.5, "router-2": 0.25, "shard-1": 1.0})
    assert usage.cpu_us_per_transfer() == {"router": 750.0, "shard": 1_000.0}
    assert usage.to_json()["syncs_per_s"] == 25.0


def _report() -> dict[str, Any]:
    def case(name: str, shard_us: float, coordinator_us: float) -> Outcome:
        cpu_s = {"router-1": 2.0, "shard-1": shard_us, "coordinator-1": coordinator_us}
        usage = Usage(1.0, 1_000_000, 10, 5, 200_000_000, cpu_s, {"shard-1": 2**20})
        bar = Bar("2", "at least", 50.0)
        return Outcome(name, "what", [Figure("transfers", "/s", [40.0, 60.0, 45.0], bar)], usage)

    cases = [case("crossing-0", 3.0, 0.0), case("crossing-100", 12.0, 5.0)]
    cases.append(Outcome("redis-uniform", "a peer", skipped="not installed"))
    machine = {
        "processor": "P", "cores": 2, "cores_used": 2, "system": "S", "python": "3",
        "compiled": True,
    }  # fmt: skip
    return {
        "format": FORMAT, "machine": machine, "started": "now", "seed": 1, "scale": 1.0,
        "repeats": 3, "accounts": 9, "cases": [each.to_json() for each in cases],
    }  # fmt: skip


def test_tables_tell_what_was_missed_and_what_was_not_run() -> None:
    text = report.markdown(_report())
    assert "| crossing-0 | transfers | 45.0/s | 40.0 – 60.0 | 2: ≥ 50.0 MISSED |" in text
    assert "| redis-uniform | a peer | not installed |  |  |" in text
    with pytest.raises(ValueError, match="format 0"):
        report.check_format({"format": 0})


def test_the_picture_is_well_formed(tmp_path: Any) -> None:
    path = tmp_path / "made.svg"
    draw(_report(), path)
    root = ET.fromstring(path.read_text(encoding="utf-8"))
    assert root.tag.endswith("svg")
    assert "crossing-100" in path.read_text(encoding="utf-8")


def test_a_fleet_grows_with_what_crosses() -> None:
    inside, between = (fleet.Costs.of(_report(), (name,)) for name in ("crossing-0",
                       "crossing-100"))  # fmt: skip
    small = fleet.fleet_for(100_000, inside, between, load=1.0)
    assert (small.shards, small.crossing) == (1, 0.0)
    large = fleet.fleet_for(1_000_000, inside, between, load=1.0)
    # 3 µs inside and 9 more for what crosses: with 12 shards, 11 of 12 do, and 11.25 are busy.
    assert (large.shards, large.routers) == (12, 2)
    assert math.isclose(large.crossing, 11 / 12)
    assert large.coordinators == math.ceil(5 * 11 / 12)
    assert math.isclose(large.disk_mb_per_s, 200)
    halved = fleet.fleet_for(1_000_000, inside, between, load=0.5)
    assert halved.shards >= 2 * large.shards - 2
    with pytest.raises(ValueError, match="no case gone"):
        fleet.Costs.of(_report(), ("gone",))


def test_growth_is_that_of_the_later_half_at_the_median() -> None:
    assert growth_percent([100, 100, 900, 105, 1, 105]) == pytest.approx(5.0)
    assert growth_percent([100] * 9) == 0.0
    assert growth_percent([]) == growth_percent([7]) == growth_percent([0, 0, 5, 5]) == 0.0
