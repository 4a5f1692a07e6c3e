"""One history of a shard, played with its blocks cut and its checkpoints taken here or there.

A history is a list of commands that say all by themselves, times included, so that it can be played
again in other pieces. Wall time moves only by its commands, by far more than the microsecond that
every block adds, so two plays differ in no hour, deadline or answer, and in their stamps by little.
"""

import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from cluster.refusals import RefusalReason
from shard_node.books import (
    HOUR_US,
    Period,
    account_row,
    read_account_row,
    read_balance_row,
    read_period_row,
)
from shard_node.rows import open_row
from shard_node.state import TABLES, LmdbState, StateFile
from shard_node.transactions import REMEMBERED_US, Decided, read_transaction_row
from tests.support.crossing import HERE, LIFE_US, SECOND_US, YES, Attempt, CrossingRig, Move, no
from tests.support.ledgers import BANK, START_US, CountingState, Reads, Tables, transfer_id
from tests.support.naive_ledger import ACTIVE, FROZEN, Ask

PLAYERS = (10, 11, 12, 13)
LOCAL = (BANK, *PLAYERS)
ELSEWHERE = (8_001, 9_001)
_ACCOUNT_AND_CURRENCY_BYTES = 10  # with which a period's key begins
MAP_BYTES = 64 * 1024 * 1024

REFUSALS = (
    RefusalReason.IMPORT_TOO_OLD,  # leaves no record
    RefusalReason.INSUFFICIENT_FUNDS,
    RefusalReason.BALANCE_CAP_EXCEEDED,
)

Command = Callable[[CrossingRig], object]
"""Does something; returns what was answered, but for its time."""


def history(rng: random.Random, count: int) -> list[Command]:
    """So many commands of every kind, behind those that open the accounts."""
    commands: list[Command] = [lambda rig: rig.open_bank()]
    for player in PLAYERS:
        commands.append(_opening(player))
        commands.append(_paying(Ask(transfer_id(900 + player), BANK, player, 200)))
    attempts: list[Attempt] = []
    now_us = START_US
    for number in range(count):
        choice = rng.random()
        if choice < 0.3:
            source, destination = rng.sample(LOCAL, 2)
            amount, currency = rng.choice((1, 7, 50)), rng.choice((1, 1, 2))
            what = source, destination, amount, currency
            metadata = rng.choice((b"", b"order 7"))
            ask = Ask(transfer_id(rng.randrange(60)), *what, metadata=metadata)
            commands.append(_paying(ask))
        elif choice < 0.4:
            group = [_move(rng, LOCAL, LOCAL) for _ in range(rng.randint(1, 4))]
            commands.append(_grouping(1_000 + number, group))
        elif choice < 0.55:
            first = _move(rng, *rng.choice(((PLAYERS, ELSEWHERE), (ELSEWHERE, PLAYERS))))
            rest = [_move(rng, LOCAL, (*LOCAL, *ELSEWHERE)) for _ in range(rng.randint(0, 2))]
            deadline_us = now_us + LIFE_US
            group_too = (first, *rest), 2_000 + number, bool(rest)
            attempts.append(Attempt(number + 1, deadline_us, *group_too))
            commands.append(_beginning(attempts[-1]))
        elif choice < 0.85 and attempts:
            commands.append(_going_on(rng.choice(attempts[-6:]), rng.random(), now_us))
        elif choice < 0.9:
            commands.append(_freezing(rng.choice(PLAYERS), rng.choice((ACTIVE, FROZEN))))
        elif choice < 0.97:
            us = rng.choice((SECOND_US, LIFE_US, HOUR_US // 3, HOUR_US))
            now_us += us
            commands.append(_passing(us))
        else:
            commands.append(_filling(number))
    return commands


def _move(rng: random.Random, sources: tuple[int, ...], destinations: tuple[int, ...]) -> Move:
    source = rng.choice(sources)
    destination = rng.choice([each for each in destinations if each != source])
    return Move(source, destination, rng.choice((1, 7, 50)), 1, rng.choice((b"", b"fee")))


def _opening(account_id: int) -> Command:
    return lambda rig: rig.open(account_id)


def _paying(*asks: Ask) -> Command:
    def pay(rig: CrossingRig) -> object:
        return [each._replace(time_us=0) for each in rig.transfer(*asks)]

    return pay


def _filling(number: int) -> Command:
    """More entries than a period has."""
    asks = [Ask(transfer_id(10_000 + number * 200 + each), BANK, 10, 1) for each in range(130)]
    return _paying(*asks)


def _grouping(key: int, moves: list[Move]) -> Command:
    return lambda rig: rig.group(key, *moves)._replace(time_us=0)


def _beginning(it: Attempt) -> Command:
    if it.home == HERE:
        vote = YES if it.number % 4 else no(REFUSALS[it.number // 4 % len(REFUSALS)])
        return lambda rig: rig.commit_home(it, vote)._replace(time_us=0, decided_us=0)
    return lambda rig: rig.prepare(it)


def _going_on(it: Attempt, choice: float, now_us: int) -> Command:
    if choice < 0.4:
        return lambda rig: rig.commit_prepared(it, now_us + 1)
    # Of what ended long ago a shard may have forgotten that, and need not have.
    if choice < 0.55 or now_us >= it.deadline_us + REMEMBERED_US:
        return lambda rig: rig.finish(it)
    if choice < 0.8 and it.home != HERE:
        return lambda rig: rig.abort(it)
    return lambda rig: rig.resolve(it)[0]


def _freezing(account_id: int, status: int) -> Command:
    return lambda rig: rig.change_status(account_id, status)


def _passing(us: int) -> Command:
    return lambda rig: rig.let_time_pass(us)


# --- playing --------------------------------------------------------------------------------------


@dataclass
class Cuts:
    """How often, in a hundred commands, what is done behind one of them.

    Attributes:
        seals, syncs, restarts, checkpoints: ends of blocks; appends; crashes behind an append of
            all; checkpoints, which are taken in slices while commands go on.
    """

    seals: int
    syncs: int
    restarts: int
    checkpoints: int


FEW = Cuts(seals=3, syncs=1, restarts=0, checkpoints=1)
MANY = Cuts(seals=70, syncs=30, restarts=3, checkpoints=30)


def play(rig: CrossingRig, commands: list[Command], cuts: Cuts, rng: random.Random) -> list[object]:
    """Plays a history to its end, a last restart and a last checkpoint; returns the answers."""
    answers = []
    for command in commands:
        answers.append(command(rig))
        if rng.randrange(100) < cuts.seals:
            rig.seal()
        if rng.randrange(100) < cuts.syncs:
            rig.sync()
        if rng.randrange(100) < cuts.restarts:
            restart(rig)
        if rng.randrange(100) < cuts.checkpoints:
            go_on_with_checkpoint(rig, rng)
    restart(rig)
    rig.checkpoint()
    return answers


def restart(rig: CrossingRig) -> None:
    """A clean end and a start: log and state are all that is left."""
    rig.seal()
    rig.sync()
    rig.crash()


def go_on_with_checkpoint(rig: CrossingRig, rng: random.Random) -> None:
    """Begins one, or takes the next step of the one that is under way."""
    if rig.draft is None:
        rig.begin_checkpoint()
    elif not rig.committed:
        rig.take(rng.randint(1, 3))
        if rng.random() < 0.5:
            rig.commit_checkpoint()
    else:
        rig.release(rng.randint(1, 50))


# --- looking --------------------------------------------------------------------------------------


def without_stamps(tables: Tables) -> dict[str, dict[object, object]]:
    """A state's rows with every time cut to its hour: what two plays must have alike."""
    accounts: dict[object, object] = {}
    balances: dict[object, object] = {}
    periods: dict[object, object] = {}
    transactions: dict[object, object] = {}
    for key, value in tables["accounts"].items():
        account = read_account_row(key, _bytes(value))
        account.opened_us = _hour(account.opened_us)
        account.status_time_us = _hour(account.status_time_us)
        accounts[key] = account_row(account)
    for key, value in tables["periods"].items():
        period = read_period_row(key, _bytes(value))
        periods[key[:_ACCOUNT_AND_CURRENCY_BYTES], period.first_sequence] = _coarse(period)
    for key, value in tables["balances"].items():
        balances[key] = _coarse(read_balance_row(key, _bytes(value))[1])
    for key, value in tables["transactions"].items():
        stored = read_transaction_row(_bytes(value))
        if isinstance(stored, Decided):
            transactions[key] = replace(stored, decided_us=0)
        else:
            transactions[key] = replace(stored, since_us=0)
    rows: dict[str, dict[object, object]] = {table: dict(tables[table].items()) for table in TABLES}
    changed = {
        "accounts": accounts,
        "balances": balances,
        "periods": periods,
        "transactions": transactions,
    }
    return {**rows, **changed}


def _coarse(period: Period) -> Period:
    start_us, last_us = _hour(period.start_us), _hour(period.last_time_us)
    return period._replace(start_us=start_us, last_time_us=last_us)


def _bytes(value: object) -> bytes:
    assert isinstance(value, bytes)
    return value


def _hour(time_us: int) -> int:
    return time_us - time_us % HOUR_US


class _Both(CountingState):
    """A state in memory that writes every checkpoint to a file as well."""

    def __init__(self, reads: Reads, file: StateFile) -> None:
        super().__init__(reads)
        self.file = file

    def write_checkpoint(self, *given: Any, **named: Any) -> None:
        super().write_checkpoint(*given, **named)
        self.file.write_checkpoint(*given, **named)


class FiledRig(CrossingRig):
    """A rig whose state is written to LMDB beside memory."""

    def __init__(self, file: StateFile, accounts_max: int = 1_000) -> None:
        self.file = file
        super().__init__(accounts_max)

    def new_state(self) -> CountingState:
        return _Both(self.reads, self.file)


@contextmanager
def filed_rig(folder: Path, accounts_max: int) -> Iterator[FiledRig]:
    """A rig with a state in this folder as well."""
    file = StateFile(folder, MAP_BYTES)
    try:
        yield FiledRig(file, accounts_max)
    finally:
        file.close()


def rows_in_file(file: StateFile) -> Tables:
    """All that a state's file has of the ledger, without its checksums."""
    state = LmdbState(file)
    rows: Tables = {}
    for table in TABLES:
        found = dict(state.rows(table))
        if table == "keys":
            rows[table] = {key: int.from_bytes(value, "little") for key, value in found.items()}
        else:
            rows[table] = {key: open_row(key, value) for key, value in found.items()}
    state.refresh()
    return rows
