"""The ledger against the naive model, whatever is done to it in whatever order.

Commands, seals, syncs, checkpoints in slices, evictions from a cache of a handful of accounts, and
crashes. Afterwards the state is the fold of the log, byte for byte, wherever checkpoints stood.
"""

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

from shard_node.books import PERIOD_ENTRIES_MAX
from shard_node.ledger import OpenStatus, StatusChange
from tests.support.ledgers import BANK, Rig, fold_of, tables, transfer_id
from tests.support.naive_ledger import (
    CLOSED,
    FROZEN,
    HOUR_US,
    PLAYER,
    SYSTEM,
    Ask,
    NaiveLedger,
    fold,
)
from tests.support.naive_ledger import series as naive_series
from tests.support.properties import run_machine

ACCOUNTS = range(BANK, BANK + 8)
CURRENCIES = (1, 2)
MINUTE_US = 60_000_000

# Around the edges of the rule: now, one past it, an hour's shift and one more than that.
IMPORT_OFFSETS_US = (
    *(0, 1, -1, -MINUTE_US, -30 * MINUTE_US, -59 * MINUTE_US),
    *(-HOUR_US, -HOUR_US - 1, -3 * HOUR_US, -48 * HOUR_US),
)

accounts = st.sampled_from(ACCOUNTS)
# Few ids, so that keys are reused, and a shift so that they differ between accounts' histories.
asks = st.builds(
    Ask,
    transfer_id=st.integers(0, 60).map(transfer_id),
    # The bank is where money comes from, so it takes part in every second transfer.
    source=st.one_of(st.just(BANK), accounts),
    destination=accounts,
    amount_minor=st.sampled_from((0, 1, 2, 3, 10, 50, 100)),
    currency=st.sampled_from((1, 1, 1, 2, 2, 0)),
    type=st.sampled_from((1, 1, 1, 2)),
    metadata=st.sampled_from((b"", b"", b"a", b"order 7")),
)
imports = st.one_of(st.just(None), st.just(None), st.sampled_from(IMPORT_OFFSETS_US))


class LedgerMachine(RuleBasedStateMachine):
    """Drives a `Rig` and a `NaiveLedger` side by side."""

    @initialize(accounts_max=st.integers(1, 5), minute=st.integers(0, 59))
    def start(self, accounts_max: int, minute: int) -> None:
        self.rig = Rig(accounts_max)
        self.rig.wall.advance(minute * MINUTE_US)
        self.naive = NaiveLedger()
        self.sealed: list[NaiveLedger] = []
        self.stops: list[int] = []
        self.rig.open_bank()
        self.naive.open_account(BANK, SYSTEM, 1 - 2**63)
        for account_id in ACCOUNTS[1:4]:
            self.rig.open(account_id)
            self.naive.open_account(account_id, PLAYER)

    # --- commands -------------------------------------------------------------------------------

    @rule(account_id=accounts, cap=st.sampled_from((0, 0, 60)))
    def open(self, account_id: int, cap: int) -> None:
        status, field = self.rig.open(account_id, PLAYER, 0, cap)
        known = self.naive.accounts.get(account_id)
        if known is None:
            assert (status, field) == (OpenStatus.OPENED, "")
            self.naive.open_account(account_id, PLAYER, 0, cap)
        elif known.kind != PLAYER:
            assert (status, field) == (OpenStatus.DIFFERS, "kind")
        elif known.cap_minor != (cap or 2**63 - 1):
            assert (status, field) == (OpenStatus.DIFFERS, "cap_minor")
        else:
            assert (status, field) == (OpenStatus.REPEAT, "")

    @rule(batch=st.lists(st.tuples(asks, imports), min_size=1, max_size=12))
    def transfer(self, batch: list[tuple[Ask, int | None]]) -> None:
        stamp_us = self.rig.stamp_us
        wanted = [
            ask if offset is None else replace(ask, import_time_us=stamp_us + offset)
            for ask, offset in batch
        ]
        expected = [self.naive.transfer(ask, stamp_us) for ask in wanted]
        assert self.rig.transfer(*wanted) == expected

    @rule(
        account_id=accounts, count=st.sampled_from((3, PERIOD_ENTRIES_MAX)), at=st.integers(1, 99)
    )
    def pay_many_times(self, account_id: int, count: int, at: int) -> None:
        numbers = range(at * 1_000, at * 1_000 + count)
        self.transfer([(Ask(transfer_id(each), BANK, account_id, 1), None) for each in numbers])

    @rule(account_id=accounts, status=st.sampled_from((1, 1, FROZEN, FROZEN, CLOSED)))
    def change_status(self, account_id: int, status: int) -> None:
        if account_id in self.naive.accounts and (account_id != BANK or status != CLOSED):
            changed = self.rig.change_status(account_id, status) is StatusChange.CHANGED
            assert changed == self.naive.change_status(account_id, status)

    @rule(us=st.sampled_from((1, MINUTE_US, 25 * MINUTE_US, HOUR_US, 30 * HOUR_US)))
    def let_time_pass(self, us: int) -> None:
        self.seal()
        self.rig.wall.advance(us)

    # --- durability -----------------------------------------------------------------------------

    @rule()
    def seal(self) -> None:
        self.rig.seal()
        self.sealed.append(copy_of(self.naive))

    @rule()
    def sync(self) -> None:
        self.rig.sync()

    @rule()
    def crash(self) -> None:
        self.rig.crash()
        durable = self.rig.ledger.sequence
        kept = [each for each in self.sealed if each.sequence == durable]
        self.naive = copy_of(kept[-1]) if durable else NaiveLedger()
        self.sealed = [copy_of(self.naive)]
        if not durable:
            self.rig.open_bank()
            self.naive.open_account(BANK, SYSTEM, 1 - 2**63)

    # --- checkpoints ----------------------------------------------------------------------------

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
        # What was recorded since it began, durable or not, is no part of it.
        assert tables(self.rig.state) == fold_of(self.rig.log, checkpoint.sequence)

    @precondition(lambda self: self.rig.draft is not None and self.rig.committed)
    @rule(count=st.integers(1, 4))
    def release_some(self, count: int) -> None:
        self.rig.release(count)

    # --- questions ------------------------------------------------------------------------------

    @rule(
        account_id=accounts,
        currency=st.sampled_from(CURRENCIES),
        back_us=st.sampled_from((0, 1, MINUTE_US, HOUR_US, 24 * HOUR_US)),
        choice=st.integers(0, 1_000),
    )
    def ask_for_totals(self, account_id: int, currency: int, back_us: int, choice: int) -> None:
        if account_id not in self.naive.accounts:
            return
        entries = self.naive.entries_of(account_id, currency)
        instants = [each.time_us for each in entries] or [self.rig.stamp_us]
        instant_us = instants[choice % len(instants)] - back_us
        history = self.rig.history(account_id, currency)
        assert flat(history.totals_at(instant_us)) == fold(entries, instant_us)

    @invariant()
    def records_are_counted_alike(self) -> None:
        assert self.rig.ledger.sequence == self.naive.sequence

    @rule()
    def compare_books(self) -> None:
        for currency in CURRENCIES:
            total = 0
            for account_id, known in self.naive.accounts.items():
                minor = self.rig.balance(account_id, currency)
                assert minor == self.naive.balance(account_id, currency)
                assert known.floor_minor <= minor <= known.cap_minor, "no overdraft"
                assert self.rig.account(account_id).status == known.status
                total += minor
            assert total == 0, "conservation"

    def teardown(self) -> None:
        if not hasattr(self, "rig"):
            return
        self.compare_books()
        self.rig.checkpoint()
        self.compare_books()
        to_us = self.rig.clock.last_us
        first_us = to_us - to_us % HOUR_US - 30 * HOUR_US
        for account_id in self.naive.accounts:
            for currency in CURRENCIES:
                entries = self.naive.entries_of(account_id, currency)
                _, hours = self.rig.history(account_id, currency).series(first_us, to_us)
                shown = [
                    (each.start_us, each.balance_minor, each.incoming, each.outgoing)
                    for each in hours
                ]
                if len(entries) <= PERIOD_ENTRIES_MAX:  # a fold of each hour is slow
                    assert shown == naive_series(entries, first_us, to_us)
        assert tables(self.rig.state) == fold_of(self.rig.log)
        assert tables(self.rig.state) == fold_of(self.rig.log, checkpoints=self.stops)


def copy_of(naive: NaiveLedger) -> NaiveLedger:
    """The naive ledger as it is now."""
    accounts = {each: replace(account) for each, account in naive.accounts.items()}
    return NaiveLedger(accounts, list(naive.entries), dict(naive.outcomes), naive.sequence)


def flat(totals: Any) -> tuple[int, ...]:
    """The ledger's totals as the naive model writes them."""
    return (
        totals.incoming,
        totals.outgoing,
        totals.incoming_count,
        totals.outgoing_count,
        totals.last_time_us,
    )


def test_the_ledger_is_the_naive_ledger(seed: int) -> None:
    run_machine(LedgerMachine, seed, examples=120, steps=50)
