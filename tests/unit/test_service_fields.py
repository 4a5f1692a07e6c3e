"""Every field check of `ShardService`: the fault names the field, and nothing changes."""

from typing import Any

import grpc

from cluster.packed import BATCH_TRANSFERS_MAX
from doubloon.v1 import types_pb2 as types
from doubloon.v1 import wallet_service_pb2 as wallet
from shard_node.books import HOUR_US
from tests.support.engines import START_US, body
from tests.support.shard_service import change_status, execute, open_accounts, served

NO_ORDER = wallet.EntryOrder.ValueType(9)
FUTURE_US = START_US + 10**9
BAD: list[tuple[str, Any, str]] = [
    ("ExecuteTransfers", execute(), "bodies"),
    ("ExecuteTransfers", execute(body(1, 1, 2), b"x"), "bodies"),
    ("ExecuteTransfers", execute(body(1, 1, 2)[:-1]), "bodies"),
    ("ExecuteTransfers", execute(*[body(1, 1, 2)] * (BATCH_TRANSFERS_MAX + 1)), "bodies"),
    (
        "ExecuteTransfers",
        execute(body(1, 1, 2, metadata_bytes=257), metadata=bytes(257)),
        "bodies",
    ),
    ("ExecuteTransfers", execute(body(1, 1, 2), metadata=b"x"), "metadata"),
    (
        "ExecuteTransfers",
        execute(body(1, 1, 2), body(2, 1, 2, metadata_bytes=2), metadata=b"x"),
        "metadata",
    ),
    ("OpenAccounts", wallet.OpenAccountsRequest(), "accounts"),
    (
        "OpenAccounts",
        wallet.OpenAccountsRequest(accounts=[wallet.AccountSpec()] * (BATCH_TRANSFERS_MAX + 1)),
        "accounts",
    ),
    ("OpenAccounts", open_accounts(account_id=0), "accounts[1].account_id"),
    ("OpenAccounts", open_accounts(account_id=2**63), "accounts[1].account_id"),
    ("OpenAccounts", open_accounts(kind=0), "accounts[1].kind"),
    ("OpenAccounts", open_accounts(kind=9), "accounts[1].kind"),
    ("OpenAccounts", open_accounts(floor_minor=-1), "accounts[1].floor_minor"),
    (
        "OpenAccounts",
        open_accounts(kind=types.ACCOUNT_KIND_SYSTEM, floor_minor=1),
        "accounts[1].floor_minor",
    ),
    (
        "OpenAccounts",
        open_accounts(kind=types.ACCOUNT_KIND_SYSTEM, floor_minor=-(2**63)),
        "accounts[1].floor_minor",
    ),
    ("OpenAccounts", open_accounts(cap_minor=-1), "accounts[1].cap_minor"),
    ("ChangeAccountStatus", change_status(status=0), "status"),
    ("ChangeAccountStatus", change_status(status=9), "status"),
    ("ChangeAccountStatus", change_status(reason=""), "reason"),
    ("ChangeAccountStatus", change_status(reason="é" * 129), "reason"),
    ("GetBalances", wallet.GetBalancesRequest(account_id=1, as_of_us=-1), "as_of_us"),
    ("GetBalances", wallet.GetBalancesRequest(account_id=1, as_of_us=FUTURE_US), "as_of_us"),
    ("GetFlows", wallet.GetFlowsRequest(account_id=1, as_of_us=-1), "as_of_us"),
    ("GetFlows", wallet.GetFlowsRequest(account_id=1, as_of_us=FUTURE_US), "as_of_us"),
    ("GetFlows", wallet.GetFlowsRequest(account_id=1, window_us=-1), "window_us"),
    ("GetFlows", wallet.GetFlowsRequest(account_id=1, window_us=2**62 + 1), "window_us"),
    ("GetFlows", wallet.GetFlowsRequest(account_id=1, currency="SILVER"), "currency"),
    ("GetBalanceSeries", wallet.GetBalanceSeriesRequest(account_id=1), "currency"),
    (
        "GetBalanceSeries",
        wallet.GetBalanceSeriesRequest(account_id=1, currency="SILVER"),
        "currency",
    ),
    (
        "GetBalanceSeries",
        wallet.GetBalanceSeriesRequest(account_id=1, currency="GOLD", from_us=-1),
        "from_us",
    ),
    (
        "GetBalanceSeries",
        wallet.GetBalanceSeriesRequest(account_id=1, currency="GOLD", to_us=FUTURE_US),
        "to_us",
    ),
    (
        "GetBalanceSeries",
        wallet.GetBalanceSeriesRequest(account_id=1, currency="GOLD", to_us=-1),
        "to_us",
    ),
    (
        "GetBalanceSeries",
        wallet.GetBalanceSeriesRequest(
            account_id=1, currency="GOLD", from_us=START_US, to_us=START_US - 2 * HOUR_US
        ),
        "from_us",
    ),
    (
        "GetBalanceSeries",
        wallet.GetBalanceSeriesRequest(
            account_id=1, currency="GOLD", from_us=START_US - 8_784 * HOUR_US, to_us=START_US
        ),
        "from_us",
    ),
    ("ListEntries", wallet.ListEntriesRequest(account_id=1, currency="SILVER"), "currency"),
    ("ListEntries", wallet.ListEntriesRequest(account_id=1, page_size=1_001), "page_size"),
    ("ListEntries", wallet.ListEntriesRequest(account_id=1, order=NO_ORDER), "order"),
    ("ListEntries", wallet.ListEntriesRequest(account_id=1, from_us=-1), "from_us"),
    ("ListEntries", wallet.ListEntriesRequest(account_id=1, to_us=-1), "to_us"),
    ("ListEntries", wallet.ListEntriesRequest(account_id=1, from_us=9, to_us=8), "to_us"),
    ("ListEntries", wallet.ListEntriesRequest(account_id=1, page_token=b"x"), "page_token"),
    ("ListEntries", wallet.ListEntriesRequest(account_id=1, page_token=bytes(24)), "page_token"),
    ("GetTransfer", wallet.GetTransferRequest(source_account_id=1), "transfer_id"),
    (
        "GetTransfer",
        wallet.GetTransferRequest(source_account_id=1, transfer_id=bytes(17)),
        "transfer_id",
    ),
]


async def test_a_bad_field_is_named_and_changes_nothing() -> None:
    async with served() as it:
        engine = it.node.engine
        before = engine.ledger.sequence, len(it.node.log.appends), engine.clock_us
        for method, request, field in BAD:
            fault = await it.fault(method, request)
            shown = f"{method} {field}"
            assert (fault.code, fault.field) == (grpc.StatusCode.INVALID_ARGUMENT, field), shown
            assert not fault.indefinite, shown
        after = engine.ledger.sequence, len(it.node.log.appends), engine.clock_us
        # A question may move the clock up to now before another of its fields is found wrong.
        assert after[:2] == before[:2]
        assert START_US <= after[2] <= START_US + 10**6
