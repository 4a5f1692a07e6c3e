"""What a shard node tells of itself."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from cluster.membership import SHARD_NODE_ROLE
from cluster.runtime import anonymous_memory_bytes
from doubloon.v1 import admin_service_pb2
from shard_node.scrubber import ScrubProgress

if TYPE_CHECKING:
    from cluster.membership import Membership
    from cluster.runtime import LoopMonitor
    from shard_node.engine import Engine

LONG_TURN_US: Final = 1_000_000
"""A turn of the event loop this long delays every call by as much: the process is not healthy."""


@dataclass(frozen=True, slots=True)
class ProcessFacts:
    """What a shard node knows of itself from the start.

    Attributes:
        member_id: as registered.
        version: of Doubloon.
        started_us: when it started.
        epoch: under which it serves its shard.
    """

    member_id: str
    version: str
    started_us: int
    epoch: int


class StatusReporter:
    """Answers for `GetShardStatus` and `GetProcessHealth`."""

    def __init__(
        self,
        engine: Engine,
        membership: Membership,
        process: ProcessFacts,
        monitor: LoopMonitor,
        scrub: ScrubProgress | None = None,
    ) -> None:
        self._engine = engine
        self._membership = membership
        self._process = process
        self._monitor = monitor
        self._scrub = scrub or ScrubProgress()

    def shard(self) -> admin_service_pb2.ShardStatus:
        """The shard."""
        engine, ledger, store = self._engine, self._engine.ledger, self._engine.store
        shard_id = engine.identity.shard_id
        topology = self._membership.view.topology
        last, checkpoint = store.log.last, store.state.checkpoint
        covered = checkpoint.sequence if checkpoint else 0
        return admin_service_pb2.ShardStatus(
            shard_id=shard_id,
            epoch=self._process.epoch,
            primary=self._process.member_id,
            reachable=True,
            slots=topology.shard_of_slot.count(shard_id) if topology else 0,
            durable_block=last.number if last else 0,
            durable_sequence=engine.committer.durable_sequence,
            checkpoint_block=checkpoint.block if checkpoint else 0,
            records_since_checkpoint=engine.committer.durable_sequence - covered,
            transfers_completed=ledger.counts.completed,
            transfers_refused=ledger.counts.refused,
            transfers_repeated=ledger.counts.repeated,
            log_syncs=engine.committer.appends,
            log_bytes=store.log.used_bytes(),
            state_bytes=store.state.used_bytes(),
            accounts_cached=len(ledger.memory.accounts),
            memory_bytes=anonymous_memory_bytes(),
            longest_turn_us=self._longest_turn_us(),
            longest_turn_cpu_us=self._longest_turn_cpu_us(),
            clock_us=engine.clock_us,
            transactions_prepared=len(ledger.transactions.prepared),
            transactions_unfinished=len(ledger.transactions.decided),
            oldest_transaction_us=ledger.transactions.oldest_us(),
            space_exhausted=engine.space.exhausted,
            scrub_ended_us=self._scrub.ended_us,
            scrub_checked=self._scrub.checked,
            scrub_total=self._scrub.total,
        )

    def process(self) -> admin_service_pb2.GetProcessHealthResponse:
        """The process."""
        process, connected = self._process, self._membership.connected
        turn_us, full = self._longest_turn_us(), self._engine.space.exhausted
        scrub = self._scrub
        scrubbing = f"{scrub.checked} of {scrub.total}" if scrub.running else "its process ended"
        return admin_service_pb2.GetProcessHealthResponse(
            role=SHARD_NODE_ROLE,
            id=process.member_id,
            version=process.version,
            started_us=process.started_us,
            longest_turn_us=turn_us,
            longest_turn_cpu_us=self._longest_turn_cpu_us(),
            memory_bytes=anonymous_memory_bytes(),
            checks=[
                _check("etcd", connected, "in touch" if connected else "out of touch"),
                _check("event_loop", turn_us < LONG_TURN_US, f"longest turn {turn_us} us"),
                _check("space", not full, "nearly exhausted" if full else "enough"),
                _check(
                    "scrub",
                    scrub.running or not scrub.wanted,
                    scrubbing if scrub.wanted else "not wanted",
                ),
            ],
        )

    def _longest_turn_us(self) -> int:
        return int(self._monitor.longest_turn_ms * 1_000)

    def _longest_turn_cpu_us(self) -> int:
        return int(self._monitor.longest_turn_cpu_ms * 1_000)


def _check(name: str, healthy: bool, detail: str) -> admin_service_pb2.HealthCheck:  # noqa: FBT001 - a small table's rows
    return admin_service_pb2.HealthCheck(name=name, healthy=healthy, detail=detail)
