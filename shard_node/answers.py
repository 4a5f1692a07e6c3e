"""How what the shard node knows is spelled in the wire contract."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import grpc

from cluster.faults import Fault
from cluster.refusals import RefusalReason, retry_class
from doubloon.v1 import admin_service_pb2, types_pb2, wallet_service_pb2
from shard_node.books import BALANCE_MAX_MINOR
from shard_node.hours import SumTooLargeError, pack_points
from shard_node.ledger import OpenStatus

if TYPE_CHECKING:
    from collections.abc import Mapping

    from shard_node import queries
    from shard_node.audit import Books
    from shard_node.books import Account
    from shard_node.hours import Hour
    from shard_node.records import TransferRecord

_OPENED: Final = wallet_service_pb2.OPEN_ACCOUNT_STATUS_OPENED
_REFUSED: Final = wallet_service_pb2.OPEN_ACCOUNT_STATUS_REFUSED


def account(account: Account) -> types_pb2.Account:
    """An account's attributes."""
    return types_pb2.Account(
        account_id=account.account_id,
        kind=types_pb2.AccountKind.ValueType(account.kind),
        status=types_pb2.AccountStatus.ValueType(account.status),
        floor_minor=account.floor_minor,
        cap_minor=0 if account.cap_minor == BALANCE_MAX_MINOR else account.cap_minor,
        opened_time_us=account.opened_us,
        status_time_us=account.status_time_us,
        status_reason=account.status_reason,
    )


def open_result(status: OpenStatus, field: str) -> wallet_service_pb2.OpenAccountResult:
    """The outcome of opening an account."""
    return wallet_service_pb2.OpenAccountResult(
        status=_REFUSED if status is OpenStatus.DIFFERS else _OPENED,
        repeat=status is OpenStatus.REPEAT,
        differing_field=field,
    )


def balance(
    code: str, totals: queries.Totals, floor_minor: int, reserved_minor: int
) -> wallet_service_pb2.Balance:
    """A balance at an instant."""
    posted = totals.balance_minor
    return wallet_service_pb2.Balance(
        currency=code,
        posted_minor=posted,
        reserved_minor=reserved_minor,
        available_minor=min(posted - reserved_minor - floor_minor, BALANCE_MAX_MINOR),
        latest_entry_time_us=totals.last_time_us,
    )


def flows(code: str, start: queries.Totals, end: queries.Totals) -> wallet_service_pb2.Flows:
    """What lies between two instants."""
    return wallet_service_pb2.Flows(
        currency=code,
        incoming_minor=_fits(end.incoming - start.incoming, "incoming_minor"),
        outgoing_minor=_fits(end.outgoing - start.outgoing, "outgoing_minor"),
        incoming_count=end.incoming_count - start.incoming_count,
        outgoing_count=end.outgoing_count - start.outgoing_count,
    )


def series(
    to_us: int, opening_minor: int, hours: list[Hour]
) -> wallet_service_pb2.GetBalanceSeriesResponse:
    """The hourly series."""
    response = wallet_service_pb2.GetBalanceSeriesResponse(
        to_us=to_us, opening_balance_minor=opening_minor
    )
    try:
        response.MergeFromString(pack_points(hours))
    except SumTooLargeError as error:
        raise _too_large(error.amount_minor, error.field) from error
    return response


def entry(
    leg: queries.Leg, codes: Mapping[int, str], log_id: int, stamp_us: int
) -> wallet_service_pb2.Entry:
    """One line of a statement."""
    transfer = leg.transfer
    return wallet_service_pb2.Entry(
        direction=(
            wallet_service_pb2.ENTRY_DIRECTION_INCOMING
            if leg.incoming
            else wallet_service_pb2.ENTRY_DIRECTION_OUTGOING
        ),
        currency=codes[transfer.currency],
        amount_minor=transfer.amount_minor,
        balance_after_minor=leg.balance_minor,
        counterparty_account_id=transfer.source if leg.incoming else transfer.destination,
        transfer_id=transfer.transfer_id,
        type=types_pb2.TransferType.ValueType(transfer.type),
        reference=transfer.reference,
        metadata=leg.metadata,
        time_us=leg.time_us,
        decided_time_us=leg.decided_us or stamp_us,
        import_time_us=transfer.import_time_us,
        record=wallet_service_pb2.RecordName(log_id=log_id, sequence=leg.sequence),
        key_account_id=leg.key_account,
        group_index=leg.group_index,
        group_size=leg.group_size,
    )


def transfer(
    record: TransferRecord,
    metadata: bytes,
    codes: Mapping[int, str],
    log_id: int,
    sequence: int,
    *,
    posted: bool,
) -> wallet_service_pb2.GetTransferResponse:
    """A recorded transfer and its outcome."""
    result = types_pb2.TransferResult(
        status=(
            types_pb2.TRANSFER_STATUS_COMPLETED
            if posted
            else types_pb2.TRANSFER_STATUS_COMMITTED_POSTING
        ),
        repeat=True,
        time_us=record.source_time_us,
        source_balance_after_minor=record.source_balance_minor,
    )
    if record.reason:
        result.status = types_pb2.TRANSFER_STATUS_REFUSED
        result.refusal.reason = types_pb2.RefusalReason.ValueType(record.reason)
        result.refusal.retry_class = types_pb2.RetryClass.ValueType(
            retry_class(RefusalReason(record.reason))
        )
    return wallet_service_pb2.GetTransferResponse(
        transfer=types_pb2.Transfer(
            transfer_id=record.transfer_id,
            source_account_id=record.source,
            destination_account_id=record.destination,
            currency=codes[record.currency],
            amount_minor=record.amount_minor,
            type=types_pb2.TransferType.ValueType(record.type),
            reference=record.reference,
            metadata=metadata,
            import_time_us=record.import_time_us,
        ),
        result=result,
        record=wallet_service_pb2.RecordName(log_id=log_id, sequence=sequence),
    )


def conservation(
    shard_id: int, books: Mapping[int, Books], codes: Mapping[int, str]
) -> admin_service_pb2.CheckConservationResponse:
    """The sums of every currency of a shard."""
    return admin_service_pb2.CheckConservationResponse(
        books=[
            admin_service_pb2.ShardBooks(
                shard_id=shard_id,
                currency=codes[number],
                accounts=each.accounts,
                positive_minor=str(each.positive_minor),
                negative_minor=str(each.negative_minor),
                balanced=each.balanced,
                clearing_minor=str(each.clearing_minor),
            )
            for number, each in sorted(books.items())
        ],
        balanced=all(each.balanced for each in books.values()),
    )


def _fits(amount_minor: int, field: str) -> int:
    """A sum may pass what its field can hold; then no answer is better than a wrong one."""
    if amount_minor > BALANCE_MAX_MINOR:
        raise _too_large(amount_minor, field)
    return amount_minor


def _too_large(amount_minor: int, field: str) -> Fault:
    return Fault(
        grpc.StatusCode.OUT_OF_RANGE,
        f"{field} would be {amount_minor}, more than 2^63 − 1: ask for a shorter window",
        field,
    )
