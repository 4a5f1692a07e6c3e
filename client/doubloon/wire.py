"""Answers to questions, from the wire: accounts, history, operations. One function per message."""

from typing import TypeVar

from google.protobuf.message import Message

from doubloon.accounts import Account, Balance, Balances
from doubloon.enums import (
    AccountKind,
    AccountStatus,
    EntryDirection,
    TransactionState,
    TransferType,
    member,
)
from doubloon.faults import invalid_argument
from doubloon.history import BalanceSeries, Entry, EntryPage, Flows, FlowsWindow, HourPoint
from doubloon.operations import (
    AuditReport,
    ClusterStatus,
    ConservationReport,
    Currency,
    HealthCheck,
    MemberStatus,
    ProcessHealth,
    ShardBooks,
    ShardPairAudit,
    ShardStatus,
    TransactionInfo,
)
from doubloon.transfers import RecordName
from doubloon.v1 import (
    admin_service_pb2,
    coordinator_service_pb2,
    types_pb2,
    wallet_service_pb2,
)
from doubloon.wire_transfers import contract_broken

MessageT = TypeVar("MessageT", bound=Message)


def account(message: types_pb2.Account) -> Account:
    """Read an account."""
    return Account(
        account_id=message.account_id,
        kind=member(AccountKind, message.kind),
        status=member(AccountStatus, message.status),
        floor_minor=message.floor_minor,
        cap_minor=message.cap_minor,
        opened_time_us=message.opened_time_us,
        status_time_us=message.status_time_us,
        status_reason=message.status_reason,
    )


def balances(message: wallet_service_pb2.GetBalancesResponse) -> Balances:
    """Read an account's balances."""
    return Balances(
        message.as_of_us,
        tuple(
            Balance(
                currency=each.currency,
                posted_minor=each.posted_minor,
                reserved_minor=each.reserved_minor,
                available_minor=each.available_minor,
                latest_entry_time_us=each.latest_entry_time_us,
            )
            for each in message.balances
        ),
    )


def entry_page(message: wallet_service_pb2.ListEntriesResponse) -> EntryPage:
    """Read a page of a statement."""
    return EntryPage(tuple(map(_entry, message.entries)), message.next_page_token)


def _entry(message: wallet_service_pb2.Entry) -> Entry:
    return Entry(
        direction=member(EntryDirection, message.direction),
        currency=message.currency,
        amount_minor=message.amount_minor,
        balance_after_minor=message.balance_after_minor,
        counterparty=message.counterparty_account_id,
        transfer_id=message.transfer_id,
        type=member(TransferType, message.type),
        reference=message.reference,
        metadata=message.metadata,
        time_us=message.time_us,
        decided_time_us=message.decided_time_us,
        import_time_us=message.import_time_us,
        record=RecordName(message.record.log_id, message.record.sequence),
        key_account_id=message.key_account_id,
        group_index=message.group_index,
        group_size=message.group_size,
    )


def flows(message: wallet_service_pb2.GetFlowsResponse) -> FlowsWindow:
    """Read the flows in a window."""
    return FlowsWindow(
        message.from_us,
        message.to_us,
        tuple(
            Flows(
                currency=each.currency,
                incoming_minor=each.incoming_minor,
                outgoing_minor=each.outgoing_minor,
                incoming_count=each.incoming_count,
                outgoing_count=each.outgoing_count,
            )
            for each in message.flows
        ),
    )


def balance_series(message: wallet_service_pb2.GetBalanceSeriesResponse) -> BalanceSeries:
    """Read a balance, hour by hour."""
    return BalanceSeries(
        message.to_us,
        message.opening_balance_minor,
        tuple(
            [
                HourPoint(
                    each.hour_start_us, each.balance_minor, each.incoming_minor, each.outgoing_minor
                )
                for each in message.hours
            ]
        ),
    )


def currency(message: admin_service_pb2.Currency) -> Currency:
    """Read a currency."""
    return Currency(message.code, message.number, message.scale, message.name)


def cluster_status(message: admin_service_pb2.GetClusterStatusResponse) -> ClusterStatus:
    """Read how the cluster is doing."""
    return ClusterStatus(
        topology_version=message.topology_version,
        shards=tuple(map(_shard_status, message.shards)),
        members=tuple(
            MemberStatus(
                role=each.role,
                id=each.id,
                address=each.address,
                version=each.version,
                started_us=each.started_us,
            )
            for each in message.members
        ),
        etcd_connected=message.etcd_connected,
    )


def _shard_status(message: admin_service_pb2.ShardStatus) -> ShardStatus:
    return ShardStatus(
        shard_id=message.shard_id,
        epoch=message.epoch,
        primary=message.primary,
        reachable=message.reachable,
        slots=message.slots,
        durable_block=message.durable_block,
        durable_sequence=message.durable_sequence,
        checkpoint_block=message.checkpoint_block,
        records_since_checkpoint=message.records_since_checkpoint,
        transfers_completed=message.transfers_completed,
        transfers_refused=message.transfers_refused,
        transfers_repeated=message.transfers_repeated,
        log_syncs=message.log_syncs,
        log_bytes=message.log_bytes,
        state_bytes=message.state_bytes,
        accounts_cached=message.accounts_cached,
        memory_bytes=message.memory_bytes,
        longest_turn_us=message.longest_turn_us,
        clock_us=message.clock_us,
        space_exhausted=message.space_exhausted,
        transactions_prepared=message.transactions_prepared,
        transactions_unfinished=message.transactions_unfinished,
        oldest_transaction_us=message.oldest_transaction_us,
        scrub_ended_us=message.scrub_ended_us,
        scrub_checked=message.scrub_checked,
        scrub_total=message.scrub_total,
        longest_turn_cpu_us=message.longest_turn_cpu_us,
    )


def process_health(message: admin_service_pb2.GetProcessHealthResponse) -> ProcessHealth:
    """Read how a process is doing."""
    return ProcessHealth(
        role=message.role,
        id=message.id,
        version=message.version,
        started_us=message.started_us,
        longest_turn_us=message.longest_turn_us,
        memory_bytes=message.memory_bytes,
        checks=tuple(HealthCheck(each.name, each.healthy, each.detail) for each in message.checks),
        longest_turn_cpu_us=message.longest_turn_cpu_us,
    )


def conservation(message: admin_service_pb2.CheckConservationResponse) -> ConservationReport:
    """Read the books; their sums are decimal numbers on the wire, since they may pass 64 bits."""
    return ConservationReport(
        books=tuple(
            ShardBooks(
                shard_id=each.shard_id,
                currency=each.currency,
                accounts=each.accounts,
                positive_minor=_sum(each.positive_minor),
                negative_minor=_sum(each.negative_minor),
                balanced=each.balanced,
                clearing_minor=_sum(each.clearing_minor),
            )
            for each in message.books
        ),
        balanced=message.balanced,
    )


def audit(message: admin_service_pb2.AuditResponse) -> AuditReport:
    """Read an audit; its sums are decimal numbers on the wire, since they may pass 64 bits."""
    return AuditReport(
        as_of_us=message.as_of_us,
        pairs=tuple(
            ShardPairAudit(
                shard_id=each.shard_id,
                peer_shard_id=each.peer_shard_id,
                currency=each.currency,
                position_minor=_sum(each.position_minor),
                peer_position_minor=_sum(each.peer_position_minor),
                unposted_minor=_sum(each.unposted_minor),
                balanced=each.balanced,
                differing_transaction_ids=tuple(each.differing_transaction_ids),
            )
            for each in message.pairs
        ),
        in_doubt=message.in_doubt,
        balanced=message.balanced,
    )


def _sum(text: str) -> int:
    try:
        return int(text or 0)
    except ValueError as error:
        raise contract_broken(f"{text[:40]!r} is no sum") from error


def transaction(message: coordinator_service_pb2.TransactionInfo) -> TransactionInfo:
    """Read how one shard sees a transaction."""
    return TransactionInfo(
        transaction_id=message.transaction_id,
        state=member(TransactionState, message.state),
        shard_id=message.shard_id,
        home_shard_id=message.home_shard_id,
        participant_shard_ids=tuple(message.participant_shard_ids),
        deadline_us=message.deadline_us,
        since_us=message.since_us,
        decided_us=message.decided_us,
        transfer_id=message.transfer_id,
        key_account_id=message.key_account_id,
        size=message.size,
    )


def filled(message: MessageT, **fields: object) -> MessageT:
    """Return the message with its fields set.

    Raises:
        InvalidArgument: a value does not fit the field it names.
    """
    for field, value in fields.items():
        try:
            setattr(message, field, value)
        except (TypeError, ValueError) as error:
            raise invalid_argument(field, str(error)) from error
    return message
