"""A shard: its real ledger on a log and a state in memory, and when what becomes durable.

It does what the engine does, in steps between which it can crash: a command changes memory and
joins the open block; later the block is sealed; later some sealed blocks are in the log; and only
then the answers that waited for them go. A checkpoint is begun at
one step and committed at another. A crash leaves the log and the committed state, and nothing else;
a start recovers from these.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from cluster.clock import HybridClock
from cluster.packed import Fate, Outcome, Vote
from shard_node.batch import Batch
from shard_node.checkpointer import LocalStateWriter
from shard_node.crossing import _info
from shard_node.limits import Limits
from shard_node.log import MemoryLog
from shard_node.memory_state import MemoryState
from shard_node.records import LogIdentity, cluster_id_of
from shard_node.startup import recover
from shard_node.state import Checkpoint
from shard_node.store import Store
from tests.simulation.books import ShardBooks
from tests.simulation.world import MS, Process

if TYPE_CHECKING:
    from collections.abc import Callable

    from doubloon.v1 import coordinator_service_pb2
    from shard_node.books import Account
    from shard_node.ledger import Ledger
    from shard_node.legs import Member
    from shard_node.memory import Draft
    from shard_node.participant import Participant
    from shard_node.transactions import Request
    from tests.simulation.world import World

    Listing = list[coordinator_service_pb2.TransactionInfo]

CLUSTER: Final = cluster_id_of("simulation")


@dataclass
class Shape:
    """How the shards of a schedule are.

    Attributes:
        accounts_max: as in `Memory`; few, so that accounts leave it.
        checkpoint: the chance of one after each sync.
        tight: the chance that a shard has no room for new work.
    """

    accounts_max: int = 1_000
    checkpoint: float = 0.0
    tight: float = 0.0


class Shard(Process):
    """One shard.

    Args:
        world: what it is in.
        shard_id: 1 and on.
        shape: see there.
        install: puts a wrong part into a ledger, to show that it is noticed; None = it stays right.

    Attributes:
        log, state: survive a crash.
        ledger, clock: do not.
        books: the naive model, fed with every record that the ledger makes.
    """

    def __init__(
        self,
        world: World,
        shard_id: int,
        shape: Shape,
        install: Callable[[Ledger], None] | None = None,
    ) -> None:
        super().__init__(world, f"shard {shard_id}")
        self.shard_id = shard_id
        self.identity = LogIdentity(CLUSTER, shard_id)
        self.log = MemoryLog(self.identity, 1)
        self.state = MemoryState()
        self.books = ShardBooks(shard_id)
        self._shape = shape
        self._install = install
        self._waiting: deque[tuple[int, Callable[[], None]]] = deque()
        self._is_syncing = False
        self._draft: Draft | None = None

    @property
    def durable_sequence(self) -> int:
        """Of the latest record in the log."""
        return self.log.last.draft.last_sequence if self.log.last else 0

    @property
    def is_in_doubt(self) -> bool:
        """Whether anything is prepared, or decided and not finished."""
        table = self.ledger.transactions
        return bool(table.prepared or table.decided)

    def durable_books(self) -> ShardBooks:
        """The books as the log alone tells them."""
        if self.is_up and self.books.sequence == self.durable_sequence:
            return self.books
        return ShardBooks.of(self.shard_id, self.log)

    def account(self, account_id: int) -> Account | None:
        """An account as the ledger has it."""
        return self.ledger.memory.account(account_id)

    # --- life -----------------------------------------------------------------------------------

    def start(self) -> None:
        """Recovers, and begins an epoch before it serves."""
        super().start()
        self._waiting.clear()
        self._is_syncing, self._draft = False, None
        limits = Limits(accounts_max=self._shape.accounts_max)
        self.store = Store(self.state, self.log)
        self._writer = LocalStateWriter(self.state, self.log)
        self.ledger, _ = recover(self.identity, self.store, limits, self._writer)
        if self._install is not None:
            self._install(self.ledger)
        self.books = ShardBooks.of(self.shard_id, self.log)
        self.books.compare(self.ledger)
        self.clock = HybridClock(self, self.log.last.draft.time_us if self.log.last else 0)
        self._begin_block()
        self.ledger.begin_epoch(self.incarnation)
        self._seal()
        self._append(len(self.store.sealed))

    def crash(self) -> None:
        """Loses what is not durable; answers that waited for it are never given."""
        super().crash()
        self._waiting.clear()

    # --- commands -------------------------------------------------------------------------------

    @property
    def participant(self) -> Participant:
        """Two-phase commit's half."""
        return self.ledger.participant

    def observe(self, clock_us: int) -> None:
        """A message says what its sender's clock shows."""
        self.clock.observe(clock_us)

    def apply(self, command: Callable[[], bytes], answer: Callable[[bytes], None]) -> None:
        """Makes a call of the ledger; its answer is given when all it may rest on is durable."""
        self._begin_block()
        result = command()
        self.books.take(self.ledger)
        self.answer_when_durable(lambda: answer(result))

    def answer_when_durable(self, answer: Callable[[], None]) -> None:
        """Gives an answer once every record so far is in the log."""
        self._waiting.append((self.ledger.sequence, answer))
        self._sync_soon()

    def prepare(self, request: Request, answer: Callable[[bytes], None]) -> None:
        """PREPARE; the naive model judges a refusal."""
        room = not self.world.chance(self._shape.tight)

        def command() -> bytes:
            vote = self.participant.prepare(request, room=room)
            self.books.check_vote(self.ledger, request, vote)
            self.world.counts[f"voted {Vote(vote[0]).name}"] += 1
            return vote

        self.apply(command, answer)

    def commit_home(
        self, request: Request, vote: tuple[int, int, int], answer: Callable[[bytes], None]
    ) -> None:
        """COMMIT to the home; the naive model judges a refusal."""
        room = not self.world.chance(self._shape.tight)

        def command() -> bytes:
            found = self.participant.commit_home(request, vote, room=room)
            self.books.check_decision(self.ledger, request, vote, found)
            fate, outcome = Fate(found[0]).name, Outcome(found[1]).name
            self.world.counts[f"decided {fate}, key {outcome}"] += 1
            return found

        self.apply(command, answer)

    def commit_prepared(
        self, transaction_id: bytes, decided_us: int, answer: Callable[[bytes], None]
    ) -> None:
        """COMMIT to a participant."""

        def command() -> bytes:
            self.participant.commit_prepared(transaction_id, decided_us)
            return b""

        self.apply(command, answer)

    def abort(
        self, transaction_id: bytes, deadline_us: int, answer: Callable[[bytes], None]
    ) -> None:
        """ABORT."""

        def command() -> bytes:
            self.participant.abort(transaction_id, deadline_us)
            return b""

        self.apply(command, answer)

    def resolve(
        self, transaction_id: bytes, deadline_us: int, answer: Callable[[bytes], None]
    ) -> None:
        """RESOLVE."""

        def command() -> bytes:
            resolution = self.participant.resolve(transaction_id, deadline_us)
            self.world.counts[f"resolved {Fate(resolution[0]).name}"] += 1
            return resolution

        self.apply(command, answer)

    def finish(self, transaction_ids: list[bytes], answer: Callable[[bytes], None]) -> None:
        """FINISH."""

        def command() -> bytes:
            self.participant.finish(transaction_ids)
            return b""

        self.apply(command, answer)

    def list_transactions(self, since_us: int, answer: Callable[[Listing], None]) -> None:
        """What has been in doubt here since that time or longer."""

        table = self.ledger.transactions
        infos = [_info(each, self.shard_id) for each in table.prepared.values()]
        infos += [_info(each, self.shard_id) for each in table.decided.values()]
        found = [each for each in infos if each.since_us <= since_us]
        self.answer_when_durable(lambda: answer(found))

    def execute(self, body: bytes, metadata: bytes, answer: Callable[[bytes], None]) -> None:
        """A transfer of which both accounts are here."""

        def command() -> bytes:
            batch = Batch(body, metadata)
            self.ledger.execute(batch, 1)
            return batch.results.getvalue()

        self.apply(command, answer)

    def execute_group(self, members: list[Member], answer: Callable[[bytes], None]) -> None:
        """A group of which all accounts are here."""
        self.apply(lambda: self.ledger.groups.execute(members), answer)

    def change_status(self, account_id: int, status: int) -> None:
        """Freezes, thaws or closes an account, if that can be done."""
        self._begin_block()
        account = self.account(account_id)
        assert account, "accounts are opened at the beginning"
        self.ledger.change_status(account, status, "as drawn")
        self.books.take(self.ledger)
        self._sync_soon()

    def open(self, account_id: int, kind: int, floor_minor: int, cap_minor: int) -> None:
        """Opens an account, before anything happens."""
        self._begin_block()
        self.ledger.open_account(account_id, kind, floor_minor, cap_minor)
        self.books.take(self.ledger)

    def fund(self, body: bytes) -> None:
        """Executes a transfer, before anything happens."""
        self._begin_block()
        self.ledger.execute(Batch(body, b""), 1)
        self.books.take(self.ledger)

    # --- durability -----------------------------------------------------------------------------

    def sync_now(self) -> None:
        """Makes everything durable and answers, at once: for the beginning and the end."""
        self._seal()
        self._append(len(self.store.sealed))
        self._release()

    def checkpoint_now(self) -> None:
        """Takes a whole checkpoint at once."""
        self.sync_now()
        if self._draft is not None:
            self._commit_checkpoint()
        self._begin_checkpoint()
        self._commit_checkpoint()

    def _begin_block(self) -> None:
        block = self.ledger.block
        if block.stamp_us and self.world.chance(0.1):
            self._seal()
        if not block.stamp_us:
            block.begin(self.clock.tick())

    def _seal(self) -> None:
        draft = self.ledger.block.seal()
        if draft is not None:
            self.store.sealed.append(draft)

    def _append(self, blocks: int) -> None:
        drafts = list(self.store.sealed)[:blocks]
        if drafts:
            self.log.append(drafts)
            self.store.forget_durable(self.durable_sequence)

    def _sync_soon(self) -> None:
        if self._is_syncing:
            return
        self._is_syncing = True
        slow = self.world.chance(self.world.faults.slow_sync)
        delay_us = self.world.rng.randrange(50, 400 * MS if slow else MS)
        self.world.after(delay_us, f"{self.name} syncs", self._sync, self)

    def _sync(self) -> None:
        """Makes durable what is sealed, or some of it; the answers are another step."""
        self._seal()
        sealed = len(self.store.sealed)
        self._append(self.world.rng.randint(1, sealed) if sealed else 0)
        self.world.after(
            self.world.rng.randrange(1, 50), f"{self.name} answers", self._synced, self
        )

    def _synced(self) -> None:
        self._is_syncing = False
        self._release()
        if self.store.sealed or self._waiting:
            self._sync_soon()
        if self._draft is None and self.world.chance(self._shape.checkpoint):
            self._begin_checkpoint()
            delay_us = self.world.rng.randrange(1, 20 * MS)
            self.world.after(delay_us, f"{self.name} checkpoints", self._finish_checkpoint, self)

    def _release(self) -> None:
        while self._waiting and self._waiting[0][0] <= self.durable_sequence:
            self._waiting.popleft()[1]()

    # --- checkpoints ----------------------------------------------------------------------------

    def _begin_checkpoint(self) -> None:
        self._seal()
        self._draft = self.ledger.begin_checkpoint()

    def _finish_checkpoint(self) -> None:
        assert self._draft, "it was begun"
        if self._draft.sequence <= self.durable_sequence:
            self._commit_checkpoint()
            return
        delay_us = self.world.rng.randrange(1, 20 * MS)
        self.world.after(delay_us, f"{self.name} checkpoints", self._finish_checkpoint, self)

    def _commit_checkpoint(self) -> None:
        draft, self._draft = self._draft, None
        assert draft, "it was begun"
        self._writer.add_rest(draft)
        name = Checkpoint.of(self.identity, self.log, draft.first_sequence, draft.sequence)
        self._writer.write(name)
        self.ledger.memory.end_checkpoint()
        while not self.ledger.memory.release(1_000):
            pass
