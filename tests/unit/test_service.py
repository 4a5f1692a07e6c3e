"""`ShardService` over a real gRPC server: its handlers, and the status of every error."""

import asyncio
import inspect
from typing import Any

import grpc
import pytest

from cluster.refusals import RefusalReason
from cluster.rpc import SHARD_KEY, TOPOLOGY_VERSION_KEY
from doubloon.v1 import admin_service_pb2 as admin
from doubloon.v1 import shard_service_pb2 as shard
from doubloon.v1 import types_pb2 as types
from doubloon.v1 import wallet_service_pb2 as wallet
from shard_node import errors, faults
from shard_node.books import HOUR_US
from shard_node.limits import Limits
from shard_node.service import SERIES_HOURS_MAX
from tests.support.engines import FLOOR_MINOR, SHARD, START_US, body, results_of, settle
from tests.support.shard_nodes import MemoryContext
from tests.support.shard_service import TARGET, change_status, execute, open_accounts, served

GEMS = 2
DAY_US = 24 * HOUR_US


# --- errors ---------------------------------------------------------------------------------------


def test_every_error_has_its_status() -> None:
    raised = {
        each
        for _, each in inspect.getmembers(errors, inspect.isclass)
        if issubclass(each, errors.ShardNodeError) and each is not errors.ShardNodeError
    }
    assert set(faults._STATUS_OF) == raised
    for each in raised:
        error = each("a_field", "why") if each is errors.BadRequestError else each("why")
        fault = faults.as_fault(error)
        assert fault.code is faults._STATUS_OF[each]
        assert fault.indefinite is False, "nothing has happened, and that is known"
        assert fault.message == "why"
        assert fault.field == ("a_field" if each is errors.BadRequestError else "")


# --- whom a call is for ---------------------------------------------------------------------------

ASKED: list[tuple[str, Any]] = [
    ("ExecuteTransfers", execute(body(1, 1, 2))),
    ("OpenAccounts", open_accounts()),
    ("ChangeAccountStatus", change_status()),
    ("GetAccount", wallet.GetAccountRequest(account_id=1)),
    ("GetBalances", wallet.GetBalancesRequest(account_id=1)),
    ("GetFlows", wallet.GetFlowsRequest(account_id=1)),
    ("GetBalanceSeries", wallet.GetBalanceSeriesRequest(account_id=1, currency="GOLD")),
    ("ListEntries", wallet.ListEntriesRequest(account_id=1)),
    ("GetTransfer", wallet.GetTransferRequest(source_account_id=1, transfer_id=bytes(16))),
    ("CheckConservation", admin.CheckConservationRequest()),
    ("GetShardStatus", shard.GetShardStatusRequest()),
]
OTHER_TARGETS = {
    "another shard": ((SHARD_KEY, "2"), (TOPOLOGY_VERSION_KEY, "1")),
    "an older topology": ((SHARD_KEY, str(SHARD)), (TOPOLOGY_VERSION_KEY, "0")),
    "a later topology": ((SHARD_KEY, str(SHARD)), (TOPOLOGY_VERSION_KEY, "2")),
    "not said": (),
    "not a number": ((SHARD_KEY, "one"), (TOPOLOGY_VERSION_KEY, "1")),
}


async def test_a_call_for_another_is_refused_with_the_own_version() -> None:
    async with served() as it:
        before = it.node.engine.ledger.sequence
        for method, request in ASKED:
            for metadata in OTHER_TARGETS.values():
                fault = await it.fault(method, request, metadata)
                assert fault.code is grpc.StatusCode.FAILED_PRECONDITION, method
                assert fault.topology_version == 1
                assert not fault.indefinite
        assert it.node.engine.ledger.sequence == before


# --- what is not there ---------------------------------------------------------------------------


async def test_what_is_not_open_is_not_found() -> None:
    async with served() as it:
        for method, request in (
            ("GetAccount", wallet.GetAccountRequest(account_id=77)),
            ("GetBalances", wallet.GetBalancesRequest(account_id=77)),
            ("GetFlows", wallet.GetFlowsRequest(account_id=77)),
            ("GetBalanceSeries", wallet.GetBalanceSeriesRequest(account_id=77, currency="GOLD")),
            ("ListEntries", wallet.ListEntriesRequest(account_id=2**64 - 1)),
            ("GetAccount", wallet.GetAccountRequest()),
            ("ChangeAccountStatus", change_status(account_id=77)),
            ("GetTransfer", wallet.GetTransferRequest(source_account_id=1, transfer_id=bytes(16))),
        ):
            fault = await it.fault(method, request)
            assert fault.code is grpc.StatusCode.NOT_FOUND, method
            assert not fault.indefinite


# --- commands -------------------------------------------------------------------------------------


async def test_transfers() -> None:
    async with served() as it:
        request = execute(
            body(1, 1, 2, 30, metadata_bytes=3),
            body(2, 1, 1),
            body(3, 1, 2, 0),
            body(4, 1, 77),
            body(5, 2, 3, 7),
            metadata=b"abc",
        )
        answer = await it.call("ExecuteTransfers", request)
        results = results_of(answer.results)
        assert [one.reason for one in results] == [
            0,
            RefusalReason.SAME_ACCOUNT,
            RefusalReason.BAD_AMOUNT,
            RefusalReason.DESTINATION_UNKNOWN,
            0,
        ]
        assert [one.balance_minor for one in results] == [-30, 0, 0, -30, 23]
        again = results_of((await it.call("ExecuteTransfers", request)).results)
        assert [one.repeat for one in again] == [1, 0, 0, 1, 1]
        told = await it.call(
            "GetTransfer",
            wallet.GetTransferRequest(source_account_id=1, transfer_id=(1).to_bytes(16, "big")),
        )
        assert (told.transfer.amount_minor, told.transfer.metadata) == (30, b"abc")
        assert (told.transfer.currency, told.transfer.reference) == ("GOLD", 1)
        assert told.result.status == types.TRANSFER_STATUS_COMPLETED
        assert told.result.source_balance_after_minor == -30
        assert told.record.log_id == SHARD
        refused = await it.call(
            "GetTransfer",
            wallet.GetTransferRequest(source_account_id=1, transfer_id=(4).to_bytes(16, "big")),
        )
        assert refused.result.status == types.TRANSFER_STATUS_REFUSED
        assert refused.result.refusal.reason == types.REFUSAL_REASON_DESTINATION_UNKNOWN
        assert refused.result.refusal.retry_class == types.RETRY_CLASS_NEW_KEY


async def test_accounts() -> None:
    async with served() as it:
        request = open_accounts(kind=types.ACCOUNT_KIND_SYSTEM, floor_minor=-9, cap_minor=9)
        answer = await it.call("OpenAccounts", request)
        assert [one.repeat for one in answer.results] == [False, False]
        request.accounts[0].cap_minor = 5
        answer = await it.call("OpenAccounts", request)
        assert [one.status for one in answer.results] == [
            wallet.OPEN_ACCOUNT_STATUS_REFUSED,
            wallet.OPEN_ACCOUNT_STATUS_OPENED,
        ]
        assert [one.differing_field for one in answer.results] == ["cap_minor", ""]
        assert [one.repeat for one in answer.results] == [False, True]
        account = (await it.call("GetAccount", wallet.GetAccountRequest(account_id=91))).account
        assert (account.kind, account.floor_minor, account.cap_minor) == (2, -9, 9)
        assert account.opened_time_us >= START_US
        plain = (await it.call("GetAccount", wallet.GetAccountRequest(account_id=90))).account
        assert plain.cap_minor == 0, "the most there is, as asked for"


async def test_status_of_accounts() -> None:
    async with served() as it:
        frozen = await it.call("ChangeAccountStatus", change_status())
        assert (frozen.account.status, frozen.repeat) == (types.ACCOUNT_STATUS_FROZEN, False)
        assert frozen.account.status_reason == "asked to"
        again = await it.call("ChangeAccountStatus", change_status(reason="once more"))
        assert (again.account.status_reason, again.repeat) == ("asked to", True)
        answer = await it.call("ExecuteTransfers", execute(body(1, 1, 2)))
        assert results_of(answer.results)[0].reason == RefusalReason.SOURCE_FROZEN
        await it.call("ExecuteTransfers", execute(body(2, 3, 4)))
        for account_id, again_status in ((4, types.ACCOUNT_STATUS_CLOSED),):
            fault = await it.fault(
                "ChangeAccountStatus", change_status(account_id=account_id, status=again_status)
            )
            assert fault.code is grpc.StatusCode.FAILED_PRECONDITION
        closed = types.ACCOUNT_STATUS_CLOSED
        await it.call("ChangeAccountStatus", change_status(account_id=5, status=closed))
        fault = await it.fault("ChangeAccountStatus", change_status(account_id=5))
        assert fault.code is grpc.StatusCode.FAILED_PRECONDITION
        assert not fault.indefinite


async def test_overload_is_said_before_anything_happens() -> None:
    async with served(Limits(queue_transfers_max=5), accounts=4) as it:
        request = execute(*(body(number, 1, 2) for number in range(1, 7)))
        fault = await it.fault("ExecuteTransfers", request)
        assert fault.code is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert not fault.indefinite
        assert it.node.engine.ledger.counts.completed == 0


# --- questions ------------------------------------------------------------------------------------


async def test_balances_flows_and_series() -> None:
    async with served() as it:
        await it.call("ExecuteTransfers", execute(body(1, 1, 2, 30), body(2, 2, 3, 10)))
        it.node.wall.advance(HOUR_US)
        await it.call("ExecuteTransfers", execute(body(3, 3, 2, 5, currency=GEMS)))
        now = await it.call("GetBalances", wallet.GetBalancesRequest(account_id=2))
        assert [(one.currency, one.posted_minor) for one in now.balances] == [
            ("GOLD", 20),
            ("GEMS", 5),
        ]
        assert now.balances[0].available_minor == 20 - FLOOR_MINOR
        then = await it.call(
            "GetBalances", wallet.GetBalancesRequest(account_id=2, as_of_us=START_US + HOUR_US // 2)
        )
        assert [(one.currency, one.posted_minor) for one in then.balances] == [("GOLD", 20)]
        flows = await it.call("GetFlows", wallet.GetFlowsRequest(account_id=2))
        assert flows.from_us == flows.to_us - DAY_US
        assert [(f.currency, f.incoming_minor, f.outgoing_minor) for f in flows.flows] == [
            ("GOLD", 30, 10),
            ("GEMS", 5, 0),
        ]
        hour = wallet.GetFlowsRequest(account_id=2, window_us=HOUR_US // 2, currency="GOLD")
        flows = await it.call("GetFlows", hour)
        assert [(f.incoming_minor, f.outgoing_count) for f in flows.flows] == [(0, 0)]
        series = await it.call(
            "GetBalanceSeries",
            wallet.GetBalanceSeriesRequest(account_id=2, currency="GOLD", from_us=START_US),
        )
        assert [(p.balance_minor, p.incoming_minor) for p in series.hours] == [(20, 30), (20, 0)]
        month = await it.call(
            "GetBalanceSeries", wallet.GetBalanceSeriesRequest(account_id=9, currency="GOLD")
        )
        assert len(month.hours) == 720


async def test_a_series_of_many_turns_is_one_series() -> None:
    """It is read a slice at a time; here something is posted in the first and in the last."""
    then_us = START_US - START_US % HOUR_US - SERIES_HOURS_MAX * HOUR_US + 2 * HOUR_US
    async with served() as it:
        await it.call("ExecuteTransfers", execute(body(1, 1, 2, 30, import_us=then_us - 1)))
        await it.call("ExecuteTransfers", execute(body(2, 1, 2, 5, import_us=then_us + HOUR_US)))
        await it.call("ExecuteTransfers", execute(body(3, 1, 2, 7)))
        request = wallet.GetBalanceSeriesRequest(account_id=2, currency="GOLD", from_us=then_us)
        for _ in range(2):
            series = await it.call("GetBalanceSeries", request)
            starts = [point.hour_start_us for point in series.hours]
            assert starts == [then_us + hour * HOUR_US for hour in range(SERIES_HOURS_MAX - 1)]
            assert series.opening_balance_minor == 30
            shown = [(point.balance_minor, point.incoming_minor) for point in series.hours]
            assert shown == [(30, 0), (35, 5), *[(35, 0)] * (len(starts) - 3), (42, 7)]
            await it.node.engine.checkpoint()


async def test_a_window_that_begins_before_time_did() -> None:
    async with served() as it:
        await it.call("ExecuteTransfers", execute(body(1, 1, 2, 30)))
        await it.node.engine.checkpoint()
        for window_us in (START_US + 10**9, 2**62):
            request = wallet.GetFlowsRequest(account_id=2, window_us=window_us)
            flows = await it.call("GetFlows", request)
            assert flows.from_us == flows.to_us - window_us
            assert [f.incoming_minor for f in flows.flows] == [30]


async def test_a_statement_in_pages() -> None:
    async with served() as it:
        await it.call("ExecuteTransfers", execute(*(body(n, 1, 2, n) for n in range(1, 8))))
        request = wallet.ListEntriesRequest(account_id=2, page_size=3)
        listed: list[int] = []
        while True:
            page = await it.call("ListEntries", request)
            listed += [entry.reference for entry in page.entries]
            if not page.next_page_token:
                break
            request.page_token = page.next_page_token
        assert listed == [7, 6, 5, 4, 3, 2, 1]
        first = page.entries[-1]
        assert (first.amount_minor, first.balance_after_minor) == (1, 1)
        assert (first.counterparty_account_id, first.currency) == (1, "GOLD")
        assert first.direction == wallet.ENTRY_DIRECTION_INCOMING


@pytest.mark.parametrize("import_us", [0, START_US - 1_000], ids=["live", "import"])
@pytest.mark.parametrize("to_us", [0, 2**62])
async def test_a_statement_shows_nothing_that_is_not_durable(to_us: int, import_us: int) -> None:
    """However far ahead it was asked for, and whatever is posted while it waits."""
    async with served() as it:
        begun = await it.node.hold_log()
        posted = it.node.begin(body(1, 1, 2))
        await settle()
        asked = asyncio.ensure_future(
            it.servicer.ListEntries(
                wallet.ListEntriesRequest(account_id=2, to_us=to_us), MemoryContext(TARGET)
            )
        )
        await settle()
        it.node.log.let_one_go()
        await it.node.log.begun(begun + 1)
        later = it.node.begin(body(2, 1, 2, import_us=import_us))
        await settle()
        it.node.log.let_one_go()
        await it.node.log.begun(begun + 2)
        await settle()
        if asked.done():
            assert asked.result().entries[0].reference == 1
        it.node.log.let_go()
        assert 1 in [entry.reference for entry in (await asked).entries]
        await asyncio.gather(posted, later)


async def test_the_books() -> None:
    async with served() as it:
        await it.call("ExecuteTransfers", execute(body(1, 1, 2, 30), body(2, 2, 3, 9, currency=2)))
        answer = await it.call("CheckConservation", admin.CheckConservationRequest())
        assert answer.balanced
        assert [
            (b.shard_id, b.currency, b.accounts, b.positive_minor, b.negative_minor, b.balanced)
            for b in answer.books
        ] == [(SHARD, "GOLD", 2, "30", "-30", True), (SHARD, "GEMS", 2, "9", "-9", True)]


async def test_a_currency_whose_registration_is_late_is_waited_for() -> None:
    async with served() as it:
        await it.call("ExecuteTransfers", execute(body(1, 1, 2, currency=3)))
        asked = asyncio.ensure_future(
            it.call("GetBalances", wallet.GetBalancesRequest(account_id=2))
        )
        await settle()
        await it.membership.register_currency("SHELLS", 0, "shells")
        assert [one.currency for one in (await asked).balances] == ["SHELLS"]


# --- how it is ------------------------------------------------------------------------------------


async def test_the_shards_status() -> None:
    async with served() as it:
        await it.call("ExecuteTransfers", execute(body(1, 1, 2), body(2, 1, 77)))
        await it.node.engine.checkpoint()
        await it.call("ExecuteTransfers", execute(body(1, 1, 2), body(3, 1, 2)))
        status = (await it.call("GetShardStatus", shard.GetShardStatusRequest())).status
        assert (status.shard_id, status.epoch, status.primary) == (SHARD, 1, "shard-1")
        assert status.reachable
        assert status.slots == 4_096
        assert (status.transfers_completed, status.transfers_refused) == (2, 1)
        assert status.transfers_repeated == 1
        # One record began the epoch, ten opened accounts.
        assert status.durable_sequence == 14
        assert status.records_since_checkpoint == 1
        assert status.durable_block == status.checkpoint_block + 1
        assert status.log_syncs == len(it.node.log.appends)
        assert status.log_bytes == it.node.log.used_bytes()
        assert status.state_bytes == it.node.state.used_bytes()
        assert status.accounts_cached == 10
        assert status.memory_bytes > 0
        assert status.clock_us == it.node.engine.clock_us
        assert not status.space_exhausted


def _checks(health: admin.GetProcessHealthResponse) -> dict[str, bool]:
    return {check.name: check.healthy for check in health.checks}


async def test_the_process_health() -> None:
    async with served() as it:
        request = admin.GetProcessHealthRequest()
        health = await it.call("GetProcessHealth", request, metadata=())
        assert (health.role, health.id, health.version) == ("shard_node", "shard-1", "1.2.3")
        assert health.started_us == START_US
        assert health.memory_bytes > 0
        assert _checks(health) == {
            "etcd": True,
            "event_loop": True,
            "space": True,
            "scrub": True,
        }
        it.membership.cut()
        it.node.engine.space.exhausted = True
        it.monitor._longest_ns = 2 * 10**9
        health = await it.call("GetProcessHealth", request, metadata=())
        assert _checks(health) == {
            "etcd": False,
            "event_loop": False,
            "space": False,
            "scrub": True,  # none is wanted here
        }
        assert health.longest_turn_us >= 2 * 10**6
        it.node.engine.space.exhausted = False
        it.membership.mend()


async def test_without_space_questions_go_on_and_commands_do_not() -> None:
    async with served() as it:
        await it.call("ExecuteTransfers", execute(body(1, 1, 2, 30)))
        it.node.engine.space.exhausted = True
        for method, request in (
            ("ExecuteTransfers", execute(body(2, 1, 2))),
            ("OpenAccounts", open_accounts()),
            ("ChangeAccountStatus", change_status()),
        ):
            fault = await it.fault(method, request)
            assert fault.code is grpc.StatusCode.RESOURCE_EXHAUSTED
            assert not fault.indefinite
        for method, request in ASKED[3:8]:
            await it.call(method, request)
        it.node.engine.space.exhausted = False


async def test_a_call_that_is_given_up_breaks_nothing() -> None:
    async with served() as it:
        it.node.writer.hold()
        call = it.stub.CheckConservation(admin.CheckConservationRequest(), metadata=TARGET)
        await it.node.writer.begun(1)
        call.cancel()
        await it.call("ExecuteTransfers", execute(body(1, 1, 2)))
        it.node.writer.let_go()
        answer = await it.call("CheckConservation", admin.CheckConservationRequest())
        assert answer.balanced
        assert not it.node.fatal
