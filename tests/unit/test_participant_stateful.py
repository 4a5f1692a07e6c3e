"""Transactions, groups and transfers in any order, with seals, syncs, checkpoints and crashes.

Whatever is asked for, the log stays lawful, what was told stays true, no entry passes a floor or a
cap, and state and memory are the fold of the log.
"""

import random
from collections.abc import Iterator
from functools import partial
from typing import Any

from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    precondition,
    rule,
)

from cluster.packed import BODY_BYTES, KEY_BYTES, Fate, Outcome, Vote
from cluster.refusals import RefusalReason, is_recorded
from shard_node.records import COMMITTED, EFFECTS, ENDED, KEYED, LEG, RecordKind, records_of
from shard_node.transactions import REMEMBERED_US
from tests.support.crossing import (
    BODY,
    HERE,
    LIFE_US,
    SECOND_US,
    YES,
    Attempt,
    CrossingRig,
    Move,
    no,
    shard_of,
)
from tests.support.ledgers import BANK, START_US, fold_of, tables, transfer_id
from tests.support.naive_ledger import ACTIVE, CLOSED, FROZEN, Ask
from tests.support.properties import run_machine

PLAYERS = (10, 11, 12)
LOCAL = (BANK, *PLAYERS)
EVERYBODY = (*LOCAL, 8_001, 9_001)
CAP = 120
SCHEDULES, STEPS = 40, 120
REFUSALS = (
    RefusalReason.DESTINATION_UNKNOWN,
    RefusalReason.IMPORT_TOO_OLD,
    RefusalReason.INSUFFICIENT_FUNDS,
    RefusalReason.BALANCE_CAP_EXCEEDED,
)

Crossing = tuple[Move, list[Move] | None]
"""A transfer that crosses the border, and what follows it in its group, if it has one."""


def move_of(fields: tuple[Any, ...]) -> Move:
    return Move(*fields)


# Early enough to be moved behind the latest entry, now, and not yet.
IMPORTS_US = (START_US - SECOND_US, START_US + 1, START_US + 30 * SECOND_US)
imports = st.sampled_from((0, 0, 0, *IMPORTS_US))

moves = (
    st.tuples(
        st.sampled_from(EVERYBODY),
        st.sampled_from(EVERYBODY),
        st.sampled_from((1, 7, 20, 50, 90)),
        st.sampled_from((1, 1, 1, 2)),
        st.sampled_from((b"", b"", b"order 7")),
        st.just(0),
        st.just(1),
        imports,
    )
    .map(move_of)
    .filter(lambda move: move.source != move.destination)
)
groups = st.lists(moves, min_size=1, max_size=5)
amounts = st.sampled_from((1, 7, 20, 50))
homes = st.tuples(st.sampled_from(LOCAL), st.just(8_001), amounts).map(move_of)
guests = st.tuples(st.just(9_001), st.sampled_from(LOCAL), amounts).map(move_of)
crossings = st.tuples(st.one_of(homes, guests), st.one_of(st.none(), groups))
commands = st.sampled_from(
    (
        *("begin_again", "prepare", "prepare", "prepare", "commit_home", "commit_home"),
        *("commit_prepared", "abort", "resolve", "finish"),
    )
)
pick = st.integers(0, 1_000)


class ParticipantMachine(RuleBasedStateMachine):
    """Drives a `CrossingRig` by whatever coordinators, routers and operators might ask."""

    @initialize(accounts_max=st.integers(1, 5), first=st.lists(crossings, min_size=2, max_size=5))
    def start(self, accounts_max: int, first: list[Crossing]) -> None:
        self.rig = CrossingRig(accounts_max)
        self.rig.open_bank()
        for number, player in enumerate(PLAYERS):
            self.rig.open(player, cap_minor=CAP)
            self.rig.transfer(Ask(transfer_id(900 + number), BANK, player, 60))
        self.rig.seal()
        self.rig.sync()
        self.attempts: list[Attempt] = []
        self.finished = 0
        self.stops: list[int] = []
        # (sequence up to which it must be durable, what, who, said)
        self.said: list[tuple[int, str, bytes, object]] = []
        for each in first:
            self.begin(each)

    # --- transactions ---------------------------------------------------------------------------

    @rule(wanted=crossings)
    def begin(self, wanted: Crossing) -> None:
        first, rest = wanted
        number, is_group = len(self.attempts) + 1, rest is not None
        self.attempts.append(self.rig.attempt(number, first, *(rest or []), is_group=is_group))

    @rule(todo=st.lists(st.tuples(commands, pick), min_size=1, max_size=20))
    def ask(self, todo: list[tuple[str, int]]) -> None:
        """What coordinators send, in whatever order it arrives."""
        for command, which in todo:
            acts = {
                "begin_again": self.begin_again,
                "prepare": self.prepare,
                "commit_home": self.commit_home,
                "commit_prepared": self.commit_prepared,
                "abort": self.abort,
                "resolve": self.resolve,
                "finish": self.finish,
            }
            acts[command](self.attempts[which % len(self.attempts)])

    def begin_again(self, it: Attempt) -> None:
        self.attempts.append(it.again(len(self.attempts) + 1, self.rig.stamp_us + LIFE_US))

    def prepare(self, it: Attempt) -> None:
        if it.home == HERE or HERE not in shards_of(it):
            return
        before = self.rig.picture()
        vote = self.rig.prepare(it)
        if vote != YES:
            assert self.rig.picture() == before
        if vote[0] == Vote.BUSY:
            assert before.prepared, "there is something in doubt"

    def commit_home(self, it: Attempt) -> None:
        if it.home != HERE:
            return
        # A transaction's votes are counted once, so every copy of the message has the same.
        vote = YES if it.number % 4 else no(REFUSALS[it.number // 4 % len(REFUSALS)])
        answer = self.rig.commit_home(it, vote)
        self.tell("fate", it.transaction_id, answer.fate)
        recorded = answer.outcome == Outcome.REFUSED and is_recorded(RefusalReason(answer.reason))
        if recorded or answer.outcome == Outcome.COMMITTED:
            key = it.transfer_id + it.moves[0].source.to_bytes(8, "little")
            what = answer.reason, answer.time_us, answer.balance_minor, answer.transaction_id
            self.tell("outcome", key, what)

    def commit_prepared(self, it: Attempt) -> None:
        self.rig.commit_prepared(it)

    def abort(self, it: Attempt) -> None:
        if it.home != HERE or self.may_be_remembered(it):  # a home is not told to, late or ever
            self.rig.abort(it)

    def resolve(self, it: Attempt) -> None:
        if it.home == HERE and self.may_be_remembered(it):
            fate, _ = self.rig.resolve(it)
            if fate != Fate.UNDECIDED:
                self.tell("fate", it.transaction_id, fate)

    def finish(self, it: Attempt) -> None:
        self.rig.finish(it)

    # --- the rest of the world ------------------------------------------------------------------

    @rule(wanted=groups, is_group=st.booleans())
    def stay_here(self, wanted: list[Move], is_group: bool) -> None:  # noqa: FBT001 - hypothesis passes it by name
        self.finished += 1
        key = 5_000 + self.finished
        mine = [move for move in wanted if {move.source, move.destination} <= set(LOCAL)]
        if mine and is_group:
            self.rig.group(key, *mine)
        elif mine:
            self.rig.transfer(*(Ask(transfer_id(key), *move[:4]) for move in mine))

    @rule(account=st.sampled_from(PLAYERS), status=st.sampled_from((ACTIVE, FROZEN, CLOSED)))
    def change_status(self, account: int, status: int) -> None:
        if status != CLOSED or account == PLAYERS[-1]:
            self.rig.change_status(account, status)

    @rule(us=st.sampled_from((1, SECOND_US, LIFE_US, 20 * SECOND_US)))
    def let_time_pass(self, us: int) -> None:
        self.rig.let_time_pass(us)

    # --- durability -----------------------------------------------------------------------------

    @rule()
    def seal(self) -> None:
        self.rig.seal()

    @rule()
    def sync(self) -> None:
        self.rig.sync()

    @rule(synced=st.sampled_from((True, True, False)))
    def crash(self, synced: bool) -> None:  # noqa: FBT001 - hypothesis passes it by name
        if synced:
            self.rig.seal()
            self.rig.sync()
        self.rig.crash()
        durable = self.rig.ledger.sequence
        self.said = [each for each in self.said if each[0] <= durable]

    @rule()
    def stop_and_start(self) -> None:
        self.rig.seal()
        self.rig.sync()
        before, ended = self.rig.picture(), self.ended()
        self.rig.crash()
        assert self.rig.picture() == before
        assert self.ended() == ended

    @precondition(lambda self: self.rig.draft is None)
    @rule()
    def begin_checkpoint(self) -> None:
        self.rig.begin_checkpoint()

    @precondition(lambda self: self.rig.draft is not None and not self.rig.committed)
    @rule(count=st.integers(1, 2))
    def take_a_slice(self, count: int) -> None:
        self.rig.take(count)

    @precondition(lambda self: self.rig.draft is not None and not self.rig.committed)
    @rule()
    def commit_checkpoint(self) -> None:
        self.rig.commit_checkpoint()
        checkpoint = self.rig.state.checkpoint
        assert checkpoint is not None
        self.stops.append(checkpoint.block)
        assert tables(self.rig.state) == fold_of(self.rig.log, checkpoint.sequence)

    @precondition(lambda self: self.rig.draft is not None and self.rig.committed)
    @rule(count=st.integers(1, 4))
    def release_some(self, count: int) -> None:
        self.rig.release(count)

    # --- what must hold -------------------------------------------------------------------------

    def may_be_remembered(self, it: Attempt) -> bool:
        return self.rig.stamp_us < it.deadline_us + REMEMBERED_US

    def ended(self) -> dict[int, bool]:
        """Which attempts have ended, of those that some late message could still be about."""
        now_us, table = self.rig.clock.last_us, self.rig.ledger.transactions
        return {
            each.number: table.ended(each.transaction_id) is not None
            for each in self.attempts
            if each.deadline_us + REMEMBERED_US > now_us
        }

    def tell(self, what: str, who: bytes, said: object) -> None:
        """Notes an answer that counts once all of the log is durable."""
        for _, other, whom, before in self.said:
            assert (other, whom) != (what, who) or before == said, f"{what} of {who!r} changed"
        self.said.append((self.rig.ledger.sequence, what, who, said))

    def teardown(self) -> None:
        if not hasattr(self, "rig"):
            return
        self.rig.checkpoint()
        assert tables(self.rig.state) == fold_of(self.rig.log)
        assert tables(self.rig.state) == fold_of(self.rig.log, checkpoints=self.stops)
        check_log(self.rig)
        self.stop_and_start()
        # Whoever is prepared can be posted, in any order.
        for it in reversed(self.attempts):
            self.rig.commit_prepared(it)
        self.rig.seal()
        self.rig.sync()
        assert not self.rig.ledger.transactions.prepared
        assert not any(pins for _, pins, _ in self.rig.picture().accounts.values())
        check_log(self.rig)


def shards_of(it: Attempt) -> set[int]:
    """The shards that an attempt touches."""
    return {shard_of(each) for move in it.moves for each in move[:2]}


def check_log(rig: CrossingRig) -> None:
    """Whether the history in the log is lawful: see the module's docstring."""
    keys: set[bytes] = set()
    ended: dict[bytes, RecordKind] = {}
    prepared: set[bytes] = set()
    legs: set[tuple[bytes, int, RecordKind]] = set()
    sums: dict[tuple[int, int], int] = {}
    for record, effects in _records(rig):
        kind = RecordKind(record[BODY_BYTES])
        if kind in KEYED:
            assert record[:KEY_BYTES] not in keys, "a key was recorded twice"
            keys.add(record[:KEY_BYTES])
        if kind == RecordKind.PREPARED:
            assert record[:16] not in ended
            prepared.add(record[:16])
        elif kind == RecordKind.COMMITTED:
            assert effects[4] not in ended, "its fate was changed"
            ended[effects[4]] = kind
        elif kind == RecordKind.ABORTED:
            transaction_id = ENDED.unpack_from(record)[0]
            assert ended.get(transaction_id) != RecordKind.COMMITTED, "its fate was changed"
            assert (transaction_id, RecordKind.COMMITTED) not in ended.items()
            ended[transaction_id] = kind
            prepared.discard(transaction_id)
        elif kind in (RecordKind.LEG_INCOMING, RecordKind.LEG_OUTGOING):
            transaction_id = effects[7]
            _, source, destination, amount, _, _, currency, _, _, index, _ = BODY.unpack(
                record[:64]
            )
            if any(transaction_id):
                assert transaction_id in prepared or transaction_id in ended
                assert ended.get(transaction_id) != RecordKind.ABORTED, "aborted, and posted"
                assert (transaction_id, index, kind) not in legs, "posted twice"
                legs.add((transaction_id, index, kind))
            incoming = kind == RecordKind.LEG_INCOMING
            account = destination if incoming else source
            sums[account, currency] = sums.get((account, currency), 0) + (
                amount if incoming else -amount
            )
            assert effects[3] == sums[account, currency]
            assert account == BANK or 0 <= effects[3] <= CAP, "no overdraft, no overflow"
        elif kind == RecordKind.TRANSFER and not effects[1]:
            _, source, destination, amount, _, _, currency, *_ = BODY.unpack(record[:64])
            for account, change, after in (
                (source, -amount, effects[3]),
                (destination, amount, effects[4]),
            ):
                sums[account, currency] = sums.get((account, currency), 0) + change
                assert sums[account, currency] == after
                assert account == BANK or 0 <= after <= CAP, "no overdraft, no overflow"


def _records(rig: CrossingRig) -> Iterator[tuple[bytes, tuple[Any, ...]]]:
    layouts = {
        RecordKind.TRANSFER: EFFECTS,
        RecordKind.COMMITTED: COMMITTED,
        RecordKind.LEG_INCOMING: LEG,
        RecordKind.LEG_OUTGOING: LEG,
    }
    for block in rig.log.blocks(1):
        for record in records_of(block.draft):
            layout = layouts.get(RecordKind(record[BODY_BYTES]))
            yield record, layout.unpack_from(record, BODY_BYTES) if layout else ()


def test_long_schedules_stay_lawful(rng: random.Random) -> None:
    """The same machine, driven far and evenly, without Hypothesis's love of the small."""
    asked = ["prepare"] * 4 + ["commit_home"] * 3 + ["commit_prepared"] * 2
    asked += ["abort", "resolve", "finish", "begin_again"]
    for _ in range(SCHEDULES):
        machine = ParticipantMachine()
        crossing = partial(random_crossing, rng)
        machine.start(rng.randint(1, 5), [crossing() for _ in range(6)])
        for _ in range(STEPS):
            choice = rng.random()
            if choice < 0.5:
                todo = [(rng.choice(asked), rng.randrange(1_000)) for _ in range(rng.randint(1, 8))]
                machine.ask(todo)
            elif choice < 0.7:
                machine.begin(crossing())
            elif choice < 0.75:
                machine.let_time_pass(rng.choice((1, SECOND_US, LIFE_US, 20 * SECOND_US)))
            elif choice < 0.85:
                rng.choice((machine.seal, machine.sync, machine.stop_and_start))()
            elif choice < 0.9:
                machine.crash(synced=rng.random() < 0.5)
            elif machine.rig.draft is None:
                machine.begin_checkpoint()
            elif not machine.rig.committed:
                rng.choice((partial(machine.take_a_slice, 1), machine.commit_checkpoint))()
            else:
                machine.release_some(rng.randint(1, 4))
        machine.teardown()


def random_crossing(rng: random.Random) -> Crossing:
    """A transfer between shards, every second time at the head of a group."""

    def one(source: int, destination: int) -> Move:
        amount, currency = rng.choice((1, 7, 20, 50)), rng.choice((1, 1, 2))
        import_us = rng.choice((0, 0, 0, *IMPORTS_US))
        return Move(source, destination, amount, currency, import_us=import_us)

    local = rng.choice(LOCAL)
    first = rng.choice((one(local, 8_001), one(9_001, local)))
    pairs = [rng.sample(EVERYBODY, 2) for _ in range(rng.randint(0, 4))]
    return first, rng.choice((None, [one(*pair) for pair in pairs]))


def test_whatever_is_asked_the_log_stays_lawful(seed: int) -> None:
    run_machine(ParticipantMachine, seed, examples=40, steps=50)
