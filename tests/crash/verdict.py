"""What must be true of a folder after a fault: nothing acknowledged is lost, nothing is half done.

The folder is verified from its first block to its last row, opened as a start opens it, and asked
once more for everything that was ever asked of it. Every answer must be the one that was heard, the
balances must be the sum of what was answered, and the log must have each key once and no other.
"""

import asyncio
import os
from collections import Counter
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path

from cluster.packed import BODY_BYTES, KEY_BYTES
from shard_node import startup
from shard_node.engine import Engine
from shard_node.limits import Limits
from shard_node.log import LmdbLog
from shard_node.records import KEYED, records_of
from shard_node.verify import verify_history
from tests.crash.knowledge import Knowledge
from tests.crash.workload import (
    FROZEN,
    STREAMS,
    ChangeStatus,
    Command,
    CommitHome,
    End,
    Finish,
    Groups,
    Open,
    Prepare,
    TakeCheckpoint,
    Transfers,
    execute,
    stream,
)
from tests.support.engines import abandon
from tests.support.folders import LIMITS, open_here
from tests.support.ledgers import IDENTITY

LOCK_WAIT_S = 60.0  # a killed driver's child ends by itself, on a busy machine a little later


class NodeStoppedError(Exception):
    """The engine said that it must not go on: the process would have ended."""


@dataclass
class History:
    """What was asked of a folder in all its epochs, and answered.

    Attributes:
        seed: of all streams.
        epoch: the latest; a driver's are odd, the verdict's own even.
        knowledge: what was heard.
        asked: every command of drivers that was answered, and those that may have been executed.
        in_doubt: of the latest driver, those that were not answered.
    """

    seed: int
    epoch: int = -1
    knowledge: Knowledge = field(default_factory=Knowledge)
    asked: list[Command] = field(default_factory=list)
    in_doubt: list[Command] = field(default_factory=list)

    def next_epoch(self) -> int:
        """The next driver's epoch."""
        self.epoch += 2
        return self.epoch

    def hear(self, report: str, commands: int) -> int:
        """Take in what a driver reported, stream by stream; returns how many commands."""
        lines = [line.split(" ") for line in report.splitlines()]
        given = Counter(int(number) for number, _, _ in lines)
        known = {each: stream(self.seed, self.epoch, each) for each in range(STREAMS + 1)}
        for number, _, answer in lines:
            command = next(known[int(number)])
            self.knowledge.hear(command, bytes.fromhex(answer))
            self.asked.append(command)
        self.in_doubt = []
        for each, left in known.items():
            # Nothing is asked before the accounts are open.
            if (each == 0 or given[0]) and given[each] < commands:
                self.in_doubt += islice(left, 1)
        return len(lines)


async def verdict(history: History, folder: Path, limits: Limits = LIMITS) -> None:
    """Hold a folder against what was heard; raise what is wrong with it.

    Afterwards nothing is in doubt any more, and the next driver may follow.
    """
    os.close(startup.lock_folder(folder, LOCK_WAIT_S))
    verify_history(folder, IDENTITY, limits)
    await ask_everything(history, folder, limits)
    check_log(history, folder, limits)
    verify_history(folder, IDENTITY, limits)


async def ask_everything(history: History, folder: Path, limits: Limits = LIMITS) -> None:
    """Open a folder as a start does, and hold all that it answers against what was heard."""
    ended: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def end(error: BaseException) -> None:
        if not ended.done():
            ended.set_exception(error)

    engine, _ = open_here(folder, limits, history.epoch + 1, IDENTITY, end)
    asking = asyncio.get_running_loop().create_task(_ask_everything(history, engine))
    await asyncio.wait((asking, ended), return_when=asyncio.FIRST_COMPLETED)
    if asking.done() and not asking.exception() and not ended.done():
        ended.cancel()
        return
    asking.cancel()
    await asyncio.gather(asking, return_exceptions=True)
    await abandon(engine)
    engine.store.state.close()
    engine.store.log.close()
    if ended.done():
        error = ended.exception()
        raise NodeStoppedError(f"{type(error).__name__}: {error}") from error
    asking.result()


async def _ask_everything(history: History, engine: Engine) -> None:
    check_tables(engine, history)
    await engine.start(history.epoch + 1)
    await ask_again(engine, history)
    await end_prepared(engine, history.knowledge)
    await check_accounts(engine, history.knowledge)
    await engine.stop()


def check_tables(engine: Engine, history: History) -> None:
    """What was prepared is prepared, what was decided is remembered, and nothing else."""
    table, known = engine.ledger.transactions, history.knowledge
    doubtful = {
        each.attempt.transaction_id
        for each in history.in_doubt
        if isinstance(each, Prepare | End | CommitHome | Finish)
    }
    for what, found, expected in (
        ("prepared", table.prepared.keys(), known.prepared.keys()),
        ("decided", table.decided.keys(), known.decided.keys()),
    ):
        differing = (found ^ expected) - doubtful
        assert not differing, f"{what}, though it was not heard, or not any more: {differing}"
    for account_id, status in known.statuses.items():
        doubtful_statuses = {
            each.status
            for each in history.in_doubt
            if isinstance(each, ChangeStatus) and each.account_id == account_id
        }
        assert engine.account(account_id).status in {status, *doubtful_statuses}, account_id


async def ask_again(engine: Engine, history: History) -> None:
    """Ask first for what is in doubt, then for whatever has an outcome."""
    known, prepared = history.knowledge, set(history.knowledge.prepared)
    for command in history.in_doubt:
        if isinstance(command, Prepare):
            attempt = command.attempt
            if attempt.transaction_id in engine.ledger.transactions.prepared:
                known.prepared[attempt.transaction_id] = attempt
        elif not isinstance(command, TakeCheckpoint):
            known.hear(command, await execute(engine, command, prepared))
        history.asked.append(command)
    history.in_doubt = []
    for command in history.asked:
        if isinstance(command, Open | Transfers | Groups | CommitHome):
            known.hear(command, await execute(engine, command, prepared))


async def end_prepared(engine: Engine, known: Knowledge) -> None:
    """What is still prepared can be ended, either way."""
    for attempt in list(known.prepared.values()):
        end = End(attempt, commit=attempt.key % 2 == 0)
        known.hear(end, await execute(engine, end, set(known.prepared)))


async def check_accounts(engine: Engine, known: Knowledge) -> None:
    """Balances and positions are the sums of what was answered."""
    expected = known.balances()
    for account_id in {account_id for account_id, _ in expected} | set(known.statuses):
        account = await engine.settle_account(account_id)
        for currency, balance in account.balances.items():
            minor = expected.get((account_id, currency), 0)
            assert balance.minor == minor, f"account {account_id}: {balance.minor}, not {minor}"
            reserved = balance.reserved_outgoing, balance.reserved_incoming
            assert reserved == (0, 0), f"account {account_id} has {reserved} reserved"
        held = {currency for one, currency in expected if one == account_id}
        assert held <= account.balances.keys(), f"account {account_id} lost a balance"
        if account_id in FROZEN and account_id in known.statuses:
            assert account.status == known.statuses[account_id], account_id
    positions = {pair: minor for pair, minor in engine.ledger.clearing.positions.items() if minor}
    assert positions == {pair: minor for pair, minor in known.clearing().items() if minor}
    assert all(books.balanced for books in (await engine.add_up()).values()), "conservation"


def check_log(history: History, folder: Path, limits: Limits) -> None:
    """Each key stands in the log once, and only what was asked and has an outcome."""
    log = LmdbLog(folder / "log", IDENTITY, 2**64 - 1, limits.log_map_bytes)
    try:
        found = Counter(
            record[:KEY_BYTES]
            for block in log.blocks(1)
            for record in records_of(block.draft)
            if record[BODY_BYTES] in KEYED
        )
    finally:
        log.close()
    twice = [key.hex() for key, count in found.items() if count > 1]
    assert not twice, f"recorded twice: {twice}"
    known = history.knowledge.outcomes
    expected = {
        key.to_bytes(16, "big") + moves[0].source.to_bytes(8, "little")
        for key, (moves, _) in known.items()
    }
    differing = expected ^ found.keys()
    assert not differing, f"recorded and unheard of, or the reverse: {differing}"
