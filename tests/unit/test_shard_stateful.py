"""A whole shard against the naive one: every answer to everything, in any order.

Transfers, imports, groups, both halves of two-phase commit, freezing and closing, questions about
random instants and edges of hours; between them seals, syncs, checkpoints in slices, evictions and
crashes. Where `test_participant_stateful` asks whether what happened was lawful, this asks whether
it was exactly what a few folds over lists say. At the end state and memory are the fold of the log.
"""

import random
from dataclasses import replace
from typing import Any

from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
)

from cluster.packed import Vote
from cluster.refusals import RefusalReason
from shard_node.books import PERIOD_ENTRIES_MAX
from shard_node.ledger import StatusChange
from shard_node.queries import StatementRequest, Totals, statement
from shard_node.transactions import REMEMBERED_US
from tests.support.crossing import (
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
from tests.support.ledgers import BANK, fold_of, tables, transfer_id
from tests.support.naive_ledger import (
    ACTIVE,
    CLOSED,
    FROZEN,
    HOUR_US,
    PLAYER,
    SYSTEM,
    Ask,
    Entry,
    fold,
)
from tests.support.naive_ledger import series as naive_series
from tests.support.naive_shard import NaiveShard
from tests.support.properties import run_machine

PLAYERS = (10, 11, 12)
LOCAL = (BANK, *PLAYERS)
STRANGER = 13  # is opened late or never
ELSEWHERE = (8_001, 9_001)
CURRENCIES = (1, 2)
RICH = 11
"""The one player without a cap: what is paid many times goes there."""
CAP = 120
MINUTE_US = 60_000_000
FOR_EVER_US = 2**63 - 1
IMPORT_OFFSETS_US = (0, 1, -1, -MINUTE_US, -HOUR_US, -HOUR_US - 1, -48 * HOUR_US)
VOTES = (
    *(YES, YES, YES, YES),
    *(no(RefusalReason.INSUFFICIENT_FUNDS, 1), no(RefusalReason.IMPORT_TOO_OLD)),
    no(RefusalReason.BALANCE_CAP_EXCEEDED),
)

Fields = tuple[Any, ...]


def of_fields(fields: Fields) -> Move:
    return Move(*fields)


def moves(*who: int) -> st.SearchStrategy[Move]:
    fields = st.tuples(
        st.sampled_from(who),
        st.sampled_from(who),
        st.sampled_from((1, 1, 2, 7, 20, 50, 90)),
        st.sampled_from((1, 1, 1, 2)),
        st.sampled_from((b"", b"", b"order 7")),
        st.sampled_from((0, 0, 7)),
    )
    return fields.map(of_fields).filter(lambda move: move.source != move.destination)


near = moves(*LOCAL, *PLAYERS, STRANGER)
anywhere = moves(*LOCAL, *ELSEWHERE)
out = anywhere.filter(lambda move: shard_of(move.source) == HERE != shard_of(move.destination))
into = anywhere.filter(lambda move: shard_of(move.source) != HERE == shard_of(move.destination))
odd = st.tuples(st.sampled_from(LOCAL), st.sampled_from(LOCAL), st.just(0), st.just(0))
keys = st.integers(0, 25)  # few, so that they are used again by others and in other ways
imports = st.one_of(st.none(), st.none(), st.none(), st.sampled_from(IMPORT_OFFSETS_US))
LATEST = 8  # attempts that messages are about
crossings = st.tuples(
    st.integers(0, 40),  # a key; some are those of others
    st.one_of(out, into),
    st.one_of(st.none(), st.lists(anywhere, max_size=4)),
)
Crossing = tuple[int, Move, list[Move] | None]
pick = st.integers(0, 1_000)
commands = st.sampled_from(
    (
        *("begin_again", "prepare", "prepare", "commit_home", "commit_home"),
        *("commit_prepared", "abort", "resolve", "finish"),
    )
)


class ShardMachine(RuleBasedStateMachine):
    """Drives a `CrossingRig` and a `NaiveShard` side by side."""

    @initialize(
        accounts_max=st.integers(1, 5),
        minute=st.integers(0, 59),
        begun=st.lists(crossings, min_size=3, max_size=6),
    )
    def start(self, accounts_max: int, minute: int, begun: list[Crossing]) -> None:
        self.rig = CrossingRig(accounts_max)
        self.rig.wall.advance(minute * MINUTE_US)
        self.naive = NaiveShard()
        self.attempts: list[Attempt] = []
        self.groups: list[tuple[int, tuple[Move, ...]]] = []
        self.stops: list[int] = []
        self.open_all()
        for each in begun:
            self.begin(each, LIFE_US)

    def open_all(self) -> None:
        """The accounts that are there from the beginning, and some money."""
        self.rig.open_bank()
        self.naive.open_account(BANK, SYSTEM, 1 - 2**63)
        for number, player in enumerate(PLAYERS):
            cap = 0 if player == RICH else CAP
            self.rig.open(player, cap_minor=cap)
            self.naive.open_account(player, PLAYER, 0, cap)
            self.transfer([(Ask(transfer_id(900 + number), BANK, player, 60), None)])
        self.sealed: list[NaiveShard] = []
        self.seal()
        self.rig.sync()

    # --- commands on one shard ------------------------------------------------------------------

    @rule(batch=st.lists(st.tuples(st.tuples(keys, near), imports), min_size=1, max_size=6))
    def pay(self, batch: list[tuple[tuple[int, Move], int | None]]) -> None:
        asks = []
        for (key, move), offset_us in batch:
            fields = move.source, move.destination, move.amount_minor, move.currency, move.type
            rest = move.reference, move.metadata
            asks.append((Ask(transfer_id(key), *fields, *rest), offset_us))
        self.transfer(asks)

    def transfer(self, batch: list[tuple[Ask, int | None]]) -> None:
        stamp_us = self.rig.stamp_us
        asks = [
            ask if offset_us is None else replace(ask, import_time_us=stamp_us + offset_us)
            for ask, offset_us in batch
        ]
        expected = [self.naive.transfer(ask, stamp_us) for ask in asks]
        assert self.rig.transfer(*asks) == expected

    @rule(key=keys, group=st.lists(near, min_size=1, max_size=5), offset_us=imports)
    def pay_group(self, key: int, group: list[Move], offset_us: int | None) -> None:
        stamp_us = self.rig.stamp_us
        if offset_us is not None:
            group = [move._replace(import_us=stamp_us + offset_us) for move in group]
        self.groups.append((key, tuple(group)))
        self.repeat_group(len(self.groups) - 1)

    @precondition(lambda self: self.groups)
    @rule(which=pick)
    def repeat_group(self, which: int) -> None:
        key, group = self.groups[which % len(self.groups)]
        expected = self.naive.group(transfer_id(key), group, self.rig.stamp_us)
        assert self.rig.group(key, *group) == expected

    @rule(key=keys, group=st.lists(st.one_of(near, odd.map(of_fields)), min_size=1, max_size=3))
    def pay_odd_group(self, key: int, group: list[Move]) -> None:
        expected = self.naive.group(transfer_id(key), tuple(group), self.rig.stamp_us)
        assert self.rig.group(key, *group) == expected

    @rule(count=st.sampled_from((3, PERIOD_ENTRIES_MAX)), at=keys)
    def pay_many_times(self, count: int, at: int) -> None:
        numbers = range((1 + at) * 1_000, (1 + at) * 1_000 + count)
        self.transfer(
            [(Ask(transfer_id(each), BANK, RICH, 1, currency=2), None) for each in numbers]
        )

    @rule()
    def open_stranger(self) -> None:
        self.rig.open(STRANGER)
        if STRANGER not in self.naive.accounts:
            self.naive.open_account(STRANGER, PLAYER)

    @rule(account=st.sampled_from(PLAYERS), status=st.sampled_from((ACTIVE, ACTIVE, FROZEN)))
    def change_status(self, account: int, status: int) -> None:
        changed = self.rig.change_status(account, status) is StatusChange.CHANGED
        assert changed == self.naive.change_status(account, status)

    @rule()
    def close(self) -> None:
        self.change_status(PLAYERS[-1], CLOSED)

    @rule(us=st.sampled_from((1, 1, SECOND_US, SECOND_US, LIFE_US, 25 * MINUTE_US, HOUR_US)))
    def let_time_pass(self, us: int) -> None:
        self.seal()
        self.rig.wall.advance(us)

    # --- transactions ---------------------------------------------------------------------------

    @rule(
        crossing=crossings,
        ahead_us=st.sampled_from((1, SECOND_US, LIFE_US, LIFE_US, 2 * LIFE_US, 2 * LIFE_US + 1)),
    )
    def begin(self, crossing: Crossing, ahead_us: int) -> None:
        key, first, rest = crossing
        number, group = len(self.attempts) + 1, (first, *(rest or ()))
        deadline_us = self.rig.stamp_us + ahead_us
        self.attempts.append(Attempt(number, deadline_us, group, key, rest is not None))

    @rule(
        todo=st.lists(st.tuples(commands, pick), min_size=3, max_size=20),
        begun=st.lists(crossings, max_size=2),
    )
    def coordinate(self, todo: list[tuple[str, int]], begun: list[Crossing]) -> None:
        """What coordinators send, in whatever order it arrives; most often about the latest."""
        for each in begun:
            self.begin(each, LIFE_US)
        for command, which in todo:
            self.tell(command, self.attempts[-1 - which % len(self.attempts[-LATEST:])])

    def tell(self, command: str, it: Attempt) -> None:
        rig, naive, stamp_us = self.rig, self.naive, self.rig.stamp_us
        is_home = it.home == HERE
        # Of what ended long ago a shard may have forgotten that, and need not have.
        is_recent = stamp_us < it.deadline_us + REMEMBERED_US
        if command == "begin_again":
            self.attempts.append(it.again(len(self.attempts) + 1, stamp_us + LIFE_US))
        elif command == "prepare" and not is_home and touches_us(it):
            assert rig.prepare(it) == naive.prepare(it, stamp_us)
        elif command == "commit_prepared":
            rig.commit_prepared(it, stamp_us)
            naive.commit_prepared(it, stamp_us, stamp_us)
        elif command == "finish":
            rig.finish(it)
            naive.finish(it)
        elif command == "commit_home" and is_home and is_recent:
            said, reason, index = VOTES[it.number % len(VOTES)]  # once: each copy has the same
            vote = said, reason, min(index, len(it.moves) - 1)
            assert vote[0] in (Vote.YES, Vote.NO)
            assert rig.commit_home(it, vote) == naive.commit_home(it, vote, stamp_us)
        elif command == "abort" and is_recent:
            rig.abort(it)
            naive.abort(it.transaction_id)
        elif command == "resolve" and is_recent:
            assert rig.resolve(it) == naive.resolve(it, stamp_us)

    # --- durability -----------------------------------------------------------------------------

    @rule()
    def seal(self) -> None:
        self.rig.seal()
        self.sealed.append(self.naive.copy())

    @rule()
    def sync(self) -> None:
        self.rig.sync()

    @rule()
    def crash(self) -> None:
        self.rig.crash()
        durable = self.rig.ledger.sequence
        self.naive = next(each for each in self.sealed if each.sequence == durable).copy()
        self.sealed = [self.naive.copy()]

    @precondition(lambda self: self.rig.draft is None)
    @rule()
    def begin_checkpoint(self) -> None:
        self.seal()
        self.rig.begin_checkpoint()

    @precondition(lambda self: self.rig.draft is not None and not self.rig.committed)
    @rule(count=st.integers(1, 3))
    def take_a_slice(self, count: int) -> None:
        self.rig.take(count)

    @precondition(lambda self: self.rig.draft is not None and not self.rig.committed)
    @rule()
    def commit_checkpoint(self) -> None:
        self.rig.commit_checkpoint()
        checkpoint = self.rig.state.checkpoint
        assert checkpoint is not None
        self.stops.append(checkpoint.block)

    @precondition(lambda self: self.rig.draft is not None and self.rig.committed)
    @rule(count=st.integers(1, 4))
    def release_some(self, count: int) -> None:
        self.rig.release(count)

    # --- questions ------------------------------------------------------------------------------

    @rule(account=st.sampled_from(LOCAL), currency=st.sampled_from(CURRENCIES), choice=pick)
    def ask_for_totals(self, account: int, currency: int, choice: int) -> None:
        """At an entry, at an hour's edge beside it, and a microsecond to either side."""
        entries = self.naive.entries_of(account, currency)
        history = self.rig.history(account, currency)
        for instant_us in edges(entries, choice, self.rig.stamp_us):
            totals = history.totals_at(instant_us)
            assert totals == Totals(*fold(entries, instant_us))
            for window_us in (1, MINUTE_US, HOUR_US, 24 * HOUR_US):
                start = history.totals_at(max(0, instant_us - window_us))
                inside = [
                    each for each in entries if instant_us - window_us < each.time_us <= instant_us
                ]
                paid = sum(each.amount_minor for each in inside if each.amount_minor > 0)
                spent = -sum(each.amount_minor for each in inside if each.amount_minor < 0)
                assert totals.incoming - start.incoming == paid
                assert totals.outgoing - start.outgoing == spent

    @rule(account=st.sampled_from(LOCAL), hours=st.integers(1, 40), choice=pick)
    def ask_for_series(self, account: int, hours: int, choice: int) -> None:
        entries = self.naive.entries_of(account, 1)
        to_us = edges(entries, choice, self.rig.stamp_us)[choice % 5]
        first_us = to_us - to_us % HOUR_US - (hours - 1) * HOUR_US
        opening, shown = self.rig.history(account, 1).series(first_us, to_us)
        rows = [(each.start_us, each.balance_minor, each.incoming, each.outgoing) for each in shown]
        assert rows == naive_series(entries, first_us, to_us)
        before = fold(entries, first_us - 1)
        assert opening == before.incoming - before.outgoing

    @rule(
        account=st.sampled_from(LOCAL),
        size=st.integers(1, 9),
        oldest_first=st.booleans(),
        choice=pick,
    )
    def read_statement(self, account: int, size: int, oldest_first: bool, choice: int) -> None:  # noqa: FBT001 - hypothesis passes it by name
        entries = self.naive.entries_of(account)
        times = sorted(edges(entries, choice, self.rig.stamp_us))
        from_us, to_us = times[0], times[-1] if choice % 3 else FOR_EVER_US
        request = StatementRequest(account, 0, from_us, to_us, oldest_first, size, b"")
        shown: list[tuple[object, ...]] = []
        for _ in range(8):  # pages; a hot account has more than anybody reads here
            held = sorted(self.rig.account(account).balances)
            histories = [self.rig.history(account, each) for each in held]
            legs, token = statement(histories, request)
            shown += [
                (leg.time_us, leg.sequence, leg.incoming, leg.transfer.amount_minor,
                 leg.balance_minor, leg.transfer.transfer_id, leg.metadata)
                for leg in legs
            ]  # fmt: skip
            if not token:
                break
            request = replace(request, page_token=token)
        wanted = [as_shown(each) for each in entries if from_us <= each.time_us < to_us]
        wanted.sort(key=lambda row: row[:2], reverse=not oldest_first)
        assert shown == (wanted if not token else wanted[: len(shown)])

    @invariant()
    def records_are_counted_alike(self) -> None:
        assert self.rig.ledger.sequence == self.naive.sequence

    @rule()
    def compare_books(self) -> None:
        for account_id, known in self.naive.accounts.items():
            account = self.rig.account(account_id)
            assert account.status == known.status
            for currency in CURRENCIES:
                minor = self.naive.balance(account_id, currency)
                assert self.rig.balance(account_id, currency) == minor
                assert known.floor_minor <= minor <= known.cap_minor, "no overdraft"
                reserved = self.naive.reserved(account_id, currency)
                assert self.rig.reserved(account_id, currency) == reserved
        picture = self.rig.picture()
        assert set(picture.prepared) == set(self.naive.prepared)
        assert set(picture.decided) == set(self.naive.decided)
        assert picture.positions == self.naive.positions()

    def teardown(self) -> None:
        if not hasattr(self, "rig"):
            return
        self.compare_books()
        self.rig.checkpoint()
        assert tables(self.rig.state) == fold_of(self.rig.log)
        assert tables(self.rig.state) == fold_of(self.rig.log, checkpoints=self.stops)
        self.rig.crash()
        self.compare_books()


def touches_us(it: Attempt) -> bool:
    """Whether an attempt has a leg here."""
    return any(HERE in (shard_of(move.source), shard_of(move.destination)) for move in it.moves)


def edges(entries: list[Entry], choice: int, now_us: int) -> list[int]:
    """An entry's instant, the edge of its hour and of the next, and what is beside each."""
    at_us = entries[choice % len(entries)].time_us if entries else now_us
    hour_us = at_us - at_us % HOUR_US
    return [at_us + each for each in (-1, 0, 1)] + [
        edge_us + each for edge_us in (hour_us, hour_us + HOUR_US) for each in (-1, 0, 1)
    ]


def as_shown(entry: Entry) -> tuple[object, ...]:
    """A naive entry as a statement shows it."""
    paid, ask = entry.amount_minor > 0, entry.ask
    fields = ask.amount_minor, entry.balance_minor, ask.transfer_id, ask.metadata
    return (entry.time_us, entry.sequence, paid, *fields)


def test_a_shard_is_the_naive_shard(seed: int) -> None:
    run_machine(ShardMachine, seed, examples=5, steps=40)


def test_long_lives_of_a_shard(rng: random.Random) -> None:
    """The same machine, driven far and evenly, without Hypothesis's love of the small."""
    for _ in range(LIVES):
        machine = ShardMachine()
        begun = [random_crossing(rng) for _ in range(4)]
        machine.start(rng.randint(1, 5), rng.randrange(60), begun)
        for _ in range(STEPS):
            live(machine, rng)
        machine.teardown()


LIVES, STEPS = 20, 150
ASKED = (
    *("prepare", "prepare", "prepare", "commit_home", "commit_home", "commit_prepared"),
    *("commit_prepared", "abort", "resolve", "finish", "begin_again"),
)


def live(machine: ShardMachine, rng: random.Random) -> None:
    """One step."""
    choice, draw = rng.random(), rng.randrange(1_000)
    if choice < 0.15:
        offsets = (None, None, None, *IMPORT_OFFSETS_US)
        machine.pay([((rng.randrange(26), random_move(rng, LOCAL, LOCAL)), rng.choice(offsets))])
    elif choice < 0.25:
        group = [random_move(rng, LOCAL, LOCAL) for _ in range(rng.randint(1, 4))]
        machine.pay_group(rng.randrange(100, 999), group, None)
        machine.repeat_group(draw)
    elif choice < 0.55:
        todo = [(rng.choice(ASKED), rng.randrange(1_000)) for _ in range(rng.randint(1, 6))]
        begun = [random_crossing(rng) for _ in range(rng.choice((0, 1)))]
        machine.coordinate(todo, begun)
    elif choice < 0.65:
        rng.choice((machine.seal, machine.sync, machine.crash, machine.compare_books))()
    elif choice < 0.7:
        machine.let_time_pass(rng.choice((1, SECOND_US, SECOND_US, LIFE_US, HOUR_US // 2)))
    elif choice < 0.72:
        machine.pay_many_times(PERIOD_ENTRIES_MAX, rng.randrange(26))
    elif choice < 0.75:
        machine.change_status(rng.choice(PLAYERS), rng.choice((ACTIVE, ACTIVE, FROZEN)))
    elif choice < 0.82:
        machine.ask_for_totals(rng.choice(LOCAL), rng.choice(CURRENCIES), draw)
    elif choice < 0.87:
        machine.read_statement(rng.choice(LOCAL), rng.randint(1, 9), rng.random() < 0.5, draw)
    elif machine.rig.draft is None:
        machine.begin_checkpoint()
    elif not machine.rig.committed:
        machine.take_a_slice(1)
        if rng.random() < 0.5:
            machine.commit_checkpoint()
    else:
        machine.release_some(rng.randint(1, 4))


def random_crossing(rng: random.Random) -> Crossing:
    """A transfer between shards, every second time at the head of a group."""
    first = random_move(rng, *rng.choice(((LOCAL, ELSEWHERE), (ELSEWHERE, LOCAL))))
    everybody = (*LOCAL, *ELSEWHERE)
    rest = [random_move(rng, everybody, everybody) for _ in range(rng.randint(0, 3))]
    return rng.randrange(26, 90), first, rng.choice((None, rest))


def random_move(
    rng: random.Random, sources: tuple[int, ...], destinations: tuple[int, ...]
) -> Move:
    """A transfer from one of these to one of those."""
    source = rng.choice(sources)
    destination = rng.choice([each for each in destinations if each != source])
    return Move(source, destination, rng.choice((1, 7, 20, 50)), rng.choice((1, 1, 2)))
