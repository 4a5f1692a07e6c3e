"""The ledger's memory: all that no committed checkpoint has yet, and a cache of what one has.

- `epoch` counts checkpoints begun. The first time that an account changes in an epoch it joins the
  epoch's *touched* accounts. `begin_checkpoint` ends the epoch: its touched accounts become the
  *draft*, whose rows are taken in slices while commands go on. A command that touches an account of
  the draft whose rows were not taken yet makes the draft take them first, so every row shows the
  account as it was when the draft was begun.
- An account may leave memory when a committed checkpoint has its last change (`committed_epoch`).
- Keys of the epochs not committed are in two tables, the current and the draft's; older ones
  are in the state.
"""

from __future__ import annotations

from typing import Final, NamedTuple, Protocol

from shard_node.account_table import AccountTable
from shard_node.books import Account, Balance, account_row, period_row
from shard_node.key_table import KeyTable
from shard_node.transactions import Changed, transaction_row

PASSED_PER_ROW: Final = 8
"""Accounts that a slice of a checkpoint looks at for each row that it may have. Where all have
changed since it was begun, none of them has a row that was not taken yet."""

REVIEW_STEPS: Final = 24
"""Of the hand, in search of accounts that may leave, whenever one comes in. It comes upon three, or
more, unless the cache is tiny, so that it shrinks after a burst although many may not leave."""


class LedgerStore(Protocol):
    """What the ledger asks for when memory does not have it.

    Answers come from committed state and from the log; asking changes nothing.
    """

    def load_account(self, account_id: int) -> Account | None:
        """The account as the latest committed checkpoint has it; None = it was never opened."""
        ...

    def find_keys(self, keys: list[bytes]) -> dict[bytes, int]:
        """Those of `keys` that the latest committed checkpoint knows, with their sequences."""
        ...

    def read_transfer(self, sequence: int) -> tuple[bytes, bytes]:
        """The 128 bytes and the metadata of a transfer's record in a sealed block."""
        ...

    def read_heap(self, sequence: int, offset: int, length: int) -> bytes:
        """Bytes of the heap of the sealed block that a record is in."""
        ...


class Rows(NamedTuple):
    """Some rows of a checkpoint: each a key and a value.

    Attributes:
        accounts: of those whose attributes or status changed.
        balances: of those with new entries; each once in a checkpoint.
        periods: those that ended; none is written twice.
    """

    accounts: list[tuple[bytes, bytes]]
    balances: list[tuple[bytes, bytes]]
    periods: list[tuple[bytes, bytes]]


class Draft:
    """A checkpoint being taken: the rows of everything that changed up to `sequence`.

    Attributes:
        epoch: the epoch that it ends.
        first_sequence, sequence: the records since the checkpoint before it, up to its own last.
        transactions: those that changed, captured at once by the ledger: what is prepared or
            decided never changes, so their rows can be made later.
        clearing: rows; few.
    """

    def __init__(
        self, epoch: int, first_sequence: int, sequence: int, waiting: list[Account]
    ) -> None:
        self.epoch = epoch
        self.first_sequence = first_sequence
        self.sequence = sequence
        self.transactions: list[Changed] = []
        self.clearing: list[tuple[bytes, bytes]] = []
        self._waiting = waiting
        self._account_rows: list[tuple[bytes, bytes]] = []
        self._balance_rows: list[tuple[bytes, bytes]] = []
        self._period_rows: list[tuple[bytes, bytes]] = []
        # Balances with closed periods: those yet to be taken, as (account, balance, from, to), and
        # how many are to be forgotten after the commit.
        self._to_take: list[tuple[int, Balance, int, int]] = []
        self._to_forget: list[tuple[Balance, int]] = []

    def take(self, rows_max: int) -> Rows | None:
        """The next rows, at most so many of each kind, perhaps none; None = all are taken."""
        if not (self._waiting or self._to_take or self._taken()):
            return None
        passed_max = PASSED_PER_ROW * rows_max
        while (left := rows_max - self._taken()) > 0 and passed_max > 0:
            if self._to_take:
                self._take_closed(left)
            elif self._waiting:
                self._take_account(self._waiting.pop())
                passed_max -= 1
            else:
                break
        return Rows(
            _cut(self._account_rows, rows_max),
            _cut(self._balance_rows, rows_max),
            _cut(self._period_rows, rows_max),
        )

    def _taken(self) -> int:
        return len(self._account_rows) + len(self._balance_rows) + len(self._period_rows)

    def take_transactions(self, rows_max: int) -> list[tuple[bytes, bytes | None]]:
        """The next rows of transactions, at most so many; none = all are taken."""
        some = self.transactions[-rows_max:]
        del self.transactions[-rows_max:]
        return [transaction_row(*each) for each in some]

    def about_to_change(self, account: Account) -> None:
        """Takes what of the account will change, if that has not been done.

        Closed periods will not; an import of a month leaves hundreds of them in an account, far too
        many for a turn in which many accounts change.
        """
        if account.touched_epoch == self.epoch:
            self._take_account(account)

    def forget_closed(self, periods_max: int) -> bool:
        """Drops closed periods that the committed checkpoint has; True when none is left."""
        while periods_max > 0 and self._to_forget:
            balance, count = self._to_forget.pop()
            dropped = min(count, periods_max)
            # From the start: what memory has of a balance must be all from some period on.
            del balance.closed[:dropped]
            periods_max -= dropped
            if dropped < count:
                self._to_forget.append((balance, count - dropped))
        return not self._to_forget

    def _take_account(self, account: Account) -> None:
        """Takes the rows of one of its accounts, if that has not been done."""
        if account.taken_epoch == self.epoch:
            return
        account.taken_epoch = self.epoch
        if account.changed_sequence >= self.first_sequence:
            self._account_rows.append(account_row(account))
        for balance in account.balances.values():
            if not balance.first_sequence or balance.last_sequence < self.first_sequence:
                continue
            self._balance_rows.append(balance.row(account.account_id))
            if balance.closed:
                closed = len(balance.closed)
                self._to_take.append((account.account_id, balance, 0, closed))
                self._to_forget.append((balance, closed))

    def _take_closed(self, periods_max: int) -> None:
        """Takes some of the closed periods of one balance."""
        account_id, balance, start, end = self._to_take.pop()
        last = min(end, start + periods_max)
        for at in range(start, last):
            self._period_rows.append(period_row(account_id, balance.currency, balance.closed[at]))
        if last < end:
            self._to_take.append((account_id, balance, last, end))


def _cut(rows: list[tuple[bytes, bytes]], rows_max: int) -> list[tuple[bytes, bytes]]:
    """Removes and returns the last rows, at most so many."""
    last = rows[-rows_max:]
    del rows[-rows_max:]
    return last


class Memory:
    """Accounts, keys and the checkpoint being taken. See the module's docstring.

    Args:
        store: answers for what is not here.
        sequence: of the latest record that the store's state is true up to.
        accounts_max: how many accounts to keep besides those that changed since the latest
            committed checkpoint.

    Attributes:
        accounts: those in memory.
        keys, draft_keys: records' sequences by transfer key, of the current epoch and the draft's.
        loads: how many accounts were looked for in the store, ever.
        legs: of groups and transactions, posted in this epoch; they have no key each, so without
            them a few busy accounts would put the checkpoint off for ever.
    """

    def __init__(self, store: LedgerStore, sequence: int, accounts_max: int) -> None:
        self.accounts = AccountTable()
        self.keys = KeyTable()
        self.draft_keys = KeyTable()
        self.loads = self.legs = 0
        self._store = store
        self._accounts_max = accounts_max
        self._touched: list[Account] = []
        self._epoch = 1
        self._committed_epoch = 0
        self._draft: Draft | None = None
        self._draft_from = sequence + 1
        self._to_review = 0

    @property
    def rows_not_checkpointed(self) -> int:
        """What a driver bounds by beginning a checkpoint: accounts touched, keys and legs."""
        return len(self._touched) + len(self.keys) + self.legs

    def account(self, account_id: int) -> Account | None:
        """The account as of every record so far; None = not open, or no account's id at all."""
        if account_id >> 63:
            return None
        return self.accounts.get(account_id) or self.load(account_id)

    def load(self, account_id: int) -> Account | None:
        """Brings in an account that is not in memory; None = not open."""
        self.loads += 1
        account = self._store.load_account(account_id)
        if account is not None:
            self._review(REVIEW_STEPS)
            self._keep(account)
        return account

    def find_key(self, key: bytes, stored: dict[bytes, int] | None = None) -> int | None:
        """The sequence of the record under a transfer's key; None = none so far.

        Args:
            key: 24 bytes.
            stored: what `find_stored` told in this turn, for this key among others.
        """
        if recent := self.find_recent(key):
            return recent
        return (self.find_stored([key]) if stored is None else stored).get(key)

    def find_recent(self, key: bytes) -> int | None:
        """As `find_key`, of the records that no committed checkpoint has."""
        return self.keys.get(key) or self.draft_keys.get(key)

    def add_key(self, key: bytes, sequence: int) -> None:
        """Remembers a record's sequence under its transfer's key."""
        self.keys.add(key, sequence)

    def find_stored(self, keys: list[bytes]) -> dict[bytes, int]:
        """Those of `keys` that the latest committed checkpoint knows, with their sequences."""
        return self._store.find_keys(keys)

    def touch(self, account: Account) -> None:
        """Must be called before an account changes: see the module's docstring."""
        if account.touched_epoch == self._epoch:
            return
        if self._draft is not None:
            self._draft.about_to_change(account)
        account.touched_epoch = self._epoch
        self._touched.append(account)
        if not account.cached:  # new, or pushed out when the same transfer's other one was loaded
            self._keep(account)

    def pin(self, account: Account) -> None:
        """Keeps an account in memory until it is unpinned as often."""
        account.pins += 1
        if not account.cached:  # see `touch`
            self._keep(account)

    def unpin(self, account: Account) -> None:
        """Undoes one `pin`."""
        account.pins -= 1

    def begin_checkpoint(self, sequence: int) -> Draft:
        """Ends the epoch: the draft covers every record up to `sequence`."""
        assert self._draft is None, "one checkpoint at a time"
        self._draft = Draft(self._epoch, self._draft_from, sequence, self._touched)
        self._draft_from = sequence + 1
        self.draft_keys, self.keys = self.keys, KeyTable()
        self._touched = []
        self.legs = 0
        self._epoch += 1
        return self._draft

    def end_checkpoint(self) -> None:
        """The draft is committed: what it holds may leave memory (see `release`)."""
        assert self._draft is not None, "no checkpoint was begun"
        self._committed_epoch = self._draft.epoch
        self._to_review = (
            self.accounts.round_steps if len(self.accounts) >= self._accounts_max else 0
        )

    def release(self, items_max: int) -> bool:
        """Lets go of some of what the committed draft holds; True when nothing is left of it.

        In slices, because dropping a million keys at once would stall the event loop.
        """
        draft = self._draft
        if draft is None:
            return True
        assert draft.epoch <= self._committed_epoch, "the checkpoint must be committed first"
        self.draft_keys.drop(items_max)
        reviewed = min(items_max, self._to_review)
        self._to_review -= reviewed
        self._review(reviewed)
        if self.draft_keys or self._to_review or not draft.forget_closed(items_max):
            return False
        self._draft = None
        return True

    def _review(self, steps: int) -> None:
        """Lets go of accounts that a committed checkpoint has, while there is no room for one."""
        self.accounts.review(steps, self._accounts_max - 1, self._committed_epoch)

    def _keep(self, account: Account) -> None:
        account.cached = True
        self.accounts.add(account)
