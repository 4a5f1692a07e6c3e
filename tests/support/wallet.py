"""A small real wallet service: it speaks the contract over gRPC, keeps its books in dicts, and can
be told to go wrong.

It stands for a router and all that is behind it. Faults are a script: one `Trouble` a call, taken
in order, then none.
"""
# ruff: noqa: N802 - the contract names the methods

import asyncio
from collections import Counter, deque
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import grpc

import doubloon
from doubloon.v1 import types_pb2 as types
from doubloon.v1 import wallet_service_pb2 as pb
from doubloon.v1.admin_service_pb2_grpc import (
    AdminServiceServicer,
    add_AdminServiceServicer_to_server,
)
from doubloon.v1.wallet_service_pb2_grpc import (
    WalletServiceServicer,
    add_WalletServiceServicer_to_server,
)

FAULT_KEY = "doubloon-fault-bin"
BATCH_MAX = 8_192
MESSAGE_BYTES_MAX = 8 * 1024 * 1024
HOUR_US = 3_600_000_000
START_US = 1_700_000_000_000_000

Context = Any  # grpc.aio's servicer context, whose stubs differ on its parameters
Answer = Callable[[types.Transfer], types.TransferResult | None]


@dataclass(frozen=True)
class Trouble:
    """What goes wrong with one call."""

    status: grpc.StatusCode | None = None
    """The call ends in this status; None = it is answered."""
    fault: types.Fault | None = None
    """The detail that goes with the status, if any."""
    executes: bool = False
    """Whether the work is done all the same: the answer is lost, not the question."""
    gate: asyncio.Event | None = None
    """The call waits for this first."""
    item: Answer | None = None
    """Answers single transfers in place of the books; None from it = the books answer."""
    group: Callable[[pb.Group], pb.GroupResult | None] | None = None
    """The same for groups."""


class StandingTime:
    """What `doubloon.Timing` takes: a clock that moves only while somebody sleeps."""

    def __init__(self) -> None:
        self.now_s = 1_000.0
        self.slept_s: list[float] = []

    async def sleep(self, seconds: float) -> None:
        self.slept_s.append(seconds)
        self.now_s += seconds
        await asyncio.sleep(0)

    def timing(self, random: Callable[[], float] = lambda: 0.5) -> doubloon.Timing:
        return doubloon.Timing(lambda: self.now_s, self.sleep, random)


@dataclass
class FakeWallet(WalletServiceServicer):
    """The service. Attributes may be looked at and changed by tests at any time."""

    currencies: tuple[str, ...] = ("GOLD", "GEMS")
    troubles: deque[Trouble] = field(default_factory=deque)
    calls: Counter[str] = field(default_factory=Counter)
    batches: list[list[bytes]] = field(default_factory=list)
    """The transfer ids, or group ids, of every batch that arrived, in order."""
    accounts: dict[int, pb.AccountSpec] = field(default_factory=dict)
    balances: Counter[tuple[int, str]] = field(default_factory=Counter)
    records: dict[tuple[int, bytes], tuple[types.Transfer, types.TransferResult]] = field(
        default_factory=dict
    )
    groups: dict[tuple[int, bytes], pb.GroupResult] = field(default_factory=dict)
    entries: list[tuple[int, pb.Entry]] = field(default_factory=list)
    arrived: asyncio.Event = field(default_factory=asyncio.Event)
    """Set whenever a call arrives; for tests to clear and await."""
    in_progress: int = 0
    in_progress_max: int = 0
    streams: int = 0
    stream_batches_max: int | None = None
    """A stream breaks off, unanswered but executed, at this batch (from 0)."""
    clock_us: int = START_US

    def open(self, *account_ids: int, floor_minor: int = 0) -> None:
        for account_id in account_ids:
            kind = types.ACCOUNT_KIND_SYSTEM if floor_minor else types.ACCOUNT_KIND_PLAYER
            self.accounts[account_id] = pb.AccountSpec(
                account_id=account_id, kind=kind, floor_minor=floor_minor
            )

    async def Transfer(self, request: pb.TransferRequest, context: Context) -> pb.TransferResponse:
        await self._question("Transfer", context)
        return pb.TransferResponse(result=self.execute(request.transfer))

    async def TransferBatch(
        self, request: pb.TransferBatchRequest, context: Context
    ) -> pb.TransferBatchResponse:
        trouble = await self._begin("TransferBatch")
        try:
            self.batches.append([transfer.transfer_id for transfer in request.transfers])
            if trouble.gate is not None:
                await trouble.gate.wait()
            if trouble.status is not None and not trouble.executes:
                await fail(context, trouble.status, trouble.fault)
            results = self._execute(request.transfers, trouble)
            if trouble.status is not None:
                await fail(context, trouble.status, trouble.fault)
            return pb.TransferBatchResponse(results=results)
        finally:
            self.in_progress -= 1

    async def TransferGroup(
        self, request: pb.TransferGroupRequest, context: Context
    ) -> pb.TransferGroupResponse:
        await self._question("TransferGroup", context)
        return pb.TransferGroupResponse(result=self.execute_group(request.group))

    async def TransferGroupBatch(
        self, request: pb.TransferGroupBatchRequest, context: Context
    ) -> pb.TransferGroupBatchResponse:
        trouble = await self._begin("TransferGroupBatch")
        self.in_progress -= 1
        self.batches.append([group.group_id for group in request.groups])
        if trouble.status is not None and not trouble.executes:
            await fail(context, trouble.status, trouble.fault)
        results = [
            (trouble.group(group) if trouble.group else None) or self.execute_group(group)
            for group in request.groups
        ]
        if trouble.status is not None:
            await fail(context, trouble.status, trouble.fault)
        return pb.TransferGroupBatchResponse(results=results)

    async def StreamTransfers(
        self, request_iterator: AsyncIterator[pb.StreamTransfersRequest], context: Context
    ) -> AsyncIterator[pb.StreamTransfersResponse]:
        self.streams += 1
        number = 0
        async for request in request_iterator:
            trouble = await self._begin("StreamTransfers")
            self.in_progress -= 1
            if trouble.gate is not None:
                await trouble.gate.wait()
            results = self._execute(request.transfers, trouble)
            if trouble.status is not None:
                await fail(context, trouble.status, trouble.fault)
            if number == self.stream_batches_max:
                self.stream_batches_max = None
                await fail(context, grpc.StatusCode.UNAVAILABLE, None)
            number += 1
            yield pb.StreamTransfersResponse(results=results)

    async def OpenAccounts(
        self, request: pb.OpenAccountsRequest, context: Context
    ) -> pb.OpenAccountsResponse:
        trouble = await self._begin("OpenAccounts")
        self.in_progress -= 1
        if trouble.status is not None and not trouble.executes:
            await fail(context, trouble.status, trouble.fault)
        results = [self._open_one(spec) for spec in request.accounts]
        if trouble.status is not None:
            await fail(context, trouble.status, trouble.fault)
        return pb.OpenAccountsResponse(results=results)

    async def GetAccount(
        self, request: pb.GetAccountRequest, context: Context
    ) -> pb.GetAccountResponse:
        await self._question("GetAccount", context)
        spec = self.accounts.get(request.account_id)
        if spec is None:
            fault = types.Fault(
                code=types.FAULT_CODE_NOT_FOUND, field="account_id", message="unknown", index=-1
            )
            await fail(context, grpc.StatusCode.NOT_FOUND, fault)
            raise AssertionError("fail raises")
        account = types.Account(
            account_id=spec.account_id,
            kind=spec.kind,
            status=types.ACCOUNT_STATUS_ACTIVE,
            floor_minor=spec.floor_minor,
            cap_minor=spec.cap_minor,
            opened_time_us=START_US,
        )
        return pb.GetAccountResponse(account=account)

    async def GetBalances(
        self, request: pb.GetBalancesRequest, context: Context
    ) -> pb.GetBalancesResponse:
        await self._question("GetBalances", context)
        floor_minor = self.accounts[request.account_id].floor_minor
        return pb.GetBalancesResponse(
            as_of_us=request.as_of_us or self.clock_us,
            balances=[
                pb.Balance(
                    currency=code,
                    posted_minor=posted,
                    available_minor=posted - floor_minor,
                    latest_entry_time_us=self.clock_us,
                )
                for (account_id, code), posted in self.balances.items()
                if account_id == request.account_id
            ],
        )

    async def GetTransfer(
        self, request: pb.GetTransferRequest, context: Context
    ) -> pb.GetTransferResponse:
        await self._question("GetTransfer", context)
        found = self.records.get((request.source_account_id, request.transfer_id))
        if found is None:
            await fail(context, grpc.StatusCode.NOT_FOUND, None)
            raise AssertionError("fail raises")
        transfer, result = found
        return pb.GetTransferResponse(
            transfer=transfer,
            result=repeated(result),
            record=pb.RecordName(log_id=1, sequence=7),
        )

    async def ListEntries(
        self, request: pb.ListEntriesRequest, context: Context
    ) -> pb.ListEntriesResponse:
        await self._question("ListEntries", context)
        mine = [
            entry
            for account_id, entry in self.entries
            if account_id == request.account_id
            and request.currency in ("", entry.currency)
            and entry.time_us >= request.from_us
            and (not request.to_us or entry.time_us < request.to_us)
        ]
        if request.order != pb.ENTRY_ORDER_OLDEST_FIRST:
            mine.reverse()
        start = int(request.page_token or b"0")
        end = start + (request.page_size or 100)
        token = b"%d" % end if end < len(mine) else b""
        return pb.ListEntriesResponse(entries=mine[start:end], next_page_token=token)

    async def GetFlows(self, request: pb.GetFlowsRequest, context: Context) -> pb.GetFlowsResponse:
        await self._question("GetFlows", context)
        to_us = request.as_of_us or self.clock_us
        from_us = to_us - (request.window_us or 24 * HOUR_US)
        flows = pb.Flows(currency=request.currency or "GOLD")
        for account_id, entry in self.entries:
            if account_id == request.account_id and from_us < entry.time_us <= to_us:
                if entry.direction == pb.ENTRY_DIRECTION_INCOMING:
                    flows.incoming_minor += entry.amount_minor
                    flows.incoming_count += 1
                else:
                    flows.outgoing_minor += entry.amount_minor
                    flows.outgoing_count += 1
        return pb.GetFlowsResponse(from_us=from_us, to_us=to_us, flows=[flows])

    async def GetBalanceSeries(
        self, request: pb.GetBalanceSeriesRequest, context: Context
    ) -> pb.GetBalanceSeriesResponse:
        await self._question("GetBalanceSeries", context)
        last_us = request.to_us or self.clock_us
        first_us = (request.from_us or last_us - 2 * HOUR_US) // HOUR_US * HOUR_US
        balance = self.balances[request.account_id, request.currency]
        return pb.GetBalanceSeriesResponse(
            to_us=last_us,
            opening_balance_minor=1,
            hours=[
                pb.HourPoint(hour_start_us=hour_us, balance_minor=balance, incoming_minor=3)
                for hour_us in range(first_us, last_us + 1, HOUR_US)
            ],
        )

    async def _begin(self, name: str) -> Trouble:
        self.calls[name] += 1
        self.in_progress += 1
        self.in_progress_max = max(self.in_progress, self.in_progress_max)
        self.arrived.set()
        return self.troubles.popleft() if self.troubles else Trouble()

    async def _question(self, name: str, context: Context) -> None:
        trouble = await self._begin(name)
        try:
            if trouble.gate is not None:
                await trouble.gate.wait()
            if trouble.status is not None:
                await fail(context, trouble.status, trouble.fault)
        finally:
            self.in_progress -= 1

    def _execute(
        self, transfers: Sequence[types.Transfer], trouble: Trouble
    ) -> list[types.TransferResult]:
        return [
            (trouble.item(transfer) if trouble.item else None) or self.execute(transfer)
            for transfer in transfers
        ]

    def execute(self, transfer: types.Transfer) -> types.TransferResult:
        """Do what the contract says of one transfer, as far as clients can tell."""
        if len(transfer.transfer_id) != 16:
            return faulted(types.FAULT_CODE_INVALID_ARGUMENT, field="transfers.transfer_id")
        if transfer.currency not in self.currencies:
            return refused(types.REFUSAL_REASON_UNKNOWN_CURRENCY, types.RETRY_CLASS_SAME_KEY)
        key = (transfer.source_account_id, transfer.transfer_id)
        if key in self.records:
            recorded, result = self.records[key]
            if recorded != transfer:
                refusal = refused(types.REFUSAL_REASON_KEY_REUSED, types.RETRY_CLASS_NEVER)
                refusal.refusal.differing_field = "amount_minor"
                return refusal
            return repeated(result)
        result = self._decide(transfer)
        self.records[key] = (types.Transfer.FromString(transfer.SerializeToString()), result)
        return result

    def execute_group(self, group: pb.Group) -> pb.GroupResult:
        """The same of one group."""
        fault = None
        if len(group.group_id) != 16:
            fault = faulted(types.FAULT_CODE_INVALID_ARGUMENT, field="groups.group_id").fault
        elif not 1 <= len(group.transfers) <= 16:
            fault = faulted(types.FAULT_CODE_INVALID_ARGUMENT, field="groups.transfers").fault
        elif any(transfer.transfer_id for transfer in group.transfers):
            path = "groups.transfers[0].transfer_id"
            fault = faulted(types.FAULT_CODE_INVALID_ARGUMENT, field=path).fault
        if fault is not None:
            return pb.GroupResult(status=types.TRANSFER_STATUS_FAULT, fault=fault)
        key = (group.transfers[0].source_account_id, group.group_id)
        known = self.groups.get(key)
        if known is None:
            known = self.groups[key] = self._decide_group(group)
            return known
        again = pb.GroupResult.FromString(known.SerializeToString())
        again.repeat = True
        return again

    def _decide_group(self, group: pb.Group) -> pb.GroupResult:
        before, entries = self.balances.copy(), len(self.entries)
        for index, transfer in enumerate(group.transfers):
            one = self._decide(transfer, group.group_id, index, len(group.transfers))
            if one.status == types.TRANSFER_STATUS_REFUSED:
                self.balances = before
                del self.entries[entries:]
                return pb.GroupResult(
                    status=one.status, refusal=one.refusal, refused_index=index, time_us=one.time_us
                )
        first = group.transfers[0]
        return pb.GroupResult(
            status=types.TRANSFER_STATUS_COMPLETED,
            time_us=self.clock_us,
            source_balance_after_minor=self.balances[first.source_account_id, first.currency],
        )

    def _decide(
        self, transfer: types.Transfer, group_id: bytes = b"", index: int = 0, size: int = 0
    ) -> types.TransferResult:
        result = self._move(transfer)
        if result.status == types.TRANSFER_STATUS_COMPLETED:
            name = (group_id or transfer.transfer_id, index, size)
            source = (transfer.source_account_id, transfer.currency)
            destination = (transfer.destination_account_id, transfer.currency)
            self._post(transfer, name, pb.ENTRY_DIRECTION_OUTGOING, *source)
            self._post(transfer, name, pb.ENTRY_DIRECTION_INCOMING, *destination)
        return result

    def _move(self, transfer: types.Transfer) -> types.TransferResult:
        self.clock_us += 1
        source = (transfer.source_account_id, transfer.currency)
        destination = (transfer.destination_account_id, transfer.currency)
        floor_minor = self.accounts[transfer.source_account_id].floor_minor
        if self.balances[source] - transfer.amount_minor < floor_minor:
            return refused(
                types.REFUSAL_REASON_INSUFFICIENT_FUNDS, types.RETRY_CLASS_NEW_KEY, self.clock_us
            )
        self.balances[source] -= transfer.amount_minor
        self.balances[destination] += transfer.amount_minor
        return types.TransferResult(
            status=types.TRANSFER_STATUS_COMPLETED,
            time_us=self.clock_us,
            source_balance_after_minor=self.balances[source],
        )

    def _post(
        self,
        transfer: types.Transfer,
        name: tuple[bytes, int, int],
        direction: pb.EntryDirection.ValueType,
        account_id: int,
        code: str,
    ) -> None:
        other = {transfer.source_account_id, transfer.destination_account_id} - {account_id}
        entry = pb.Entry(
            direction=direction,
            currency=code,
            amount_minor=transfer.amount_minor,
            balance_after_minor=self.balances[account_id, code],
            counterparty_account_id=other.pop(),
            transfer_id=name[0],
            key_account_id=transfer.source_account_id,
            group_index=name[1],
            group_size=name[2],
            type=transfer.type,
            reference=transfer.reference,
            metadata=transfer.metadata,
            time_us=self.clock_us,
            decided_time_us=self.clock_us,
            import_time_us=transfer.import_time_us,
            record=pb.RecordName(log_id=1, sequence=len(self.entries) + 1),
        )
        self.entries.append((account_id, entry))

    def _open_one(self, spec: pb.AccountSpec) -> pb.OpenAccountResult:
        known = self.accounts.setdefault(spec.account_id, spec)
        if known == spec:
            return pb.OpenAccountResult(
                status=pb.OPEN_ACCOUNT_STATUS_OPENED, repeat=known is not spec
            )
        return pb.OpenAccountResult(
            status=pb.OPEN_ACCOUNT_STATUS_REFUSED, differing_field="cap_minor"
        )


def refused(
    reason: types.RefusalReason.ValueType, retry: types.RetryClass.ValueType, time_us: int = 0
) -> types.TransferResult:
    return types.TransferResult(
        status=types.TRANSFER_STATUS_REFUSED,
        refusal=types.Refusal(reason=reason, retry_class=retry),
        time_us=time_us,
    )


def faulted(
    code: types.FaultCode.ValueType, *, indefinite: bool = False, field: str = ""
) -> types.TransferResult:
    fault = types.Fault(code=code, indefinite=indefinite, field=field, message="scripted")
    return types.TransferResult(status=types.TRANSFER_STATUS_FAULT, fault=fault)


def repeated(result: types.TransferResult) -> types.TransferResult:
    again = types.TransferResult.FromString(result.SerializeToString())
    again.repeat = True
    return again


async def fail(context: Context, status: grpc.StatusCode, fault: types.Fault | None) -> None:
    detail = () if fault is None else ((FAULT_KEY, fault.SerializeToString()),)
    await context.abort(status, "scripted", detail)


@asynccontextmanager
async def serving(
    wallet: WalletServiceServicer, admin: AdminServiceServicer | None = None
) -> AsyncIterator[str]:
    """Serve on a free port of 127.0.0.1; yields host:port."""
    server = grpc.aio.server(
        options=[
            ("grpc.so_reuseport", 0),
            ("grpc.max_receive_message_length", MESSAGE_BYTES_MAX),
            ("grpc.max_send_message_length", MESSAGE_BYTES_MAX),
        ]
    )
    add_WalletServiceServicer_to_server(wallet, server)
    if admin is not None:
        add_AdminServiceServicer_to_server(admin, server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    try:
        yield f"127.0.0.1:{port}"
    finally:
        await server.stop(None)
