"""What a start believes of a log and a state: nothing that does not fit the rest.

Each block of these logs is whole by itself, with the hash it was written with, so only a look at
its neighbours, or at the state, can tell.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

import pytest

from shard_node.books import account_row
from shard_node.checkpointer import LocalStateWriter
from shard_node.damage import DamagedStateError
from shard_node.limits import Limits
from shard_node.log import MemoryLog
from shard_node.memory import Rows
from shard_node.memory_state import MemoryState
from shard_node.records import Block, DamagedLogError, LogIdentity, cluster_id_of
from shard_node.startup import recover
from shard_node.store import Store
from tests.support.ledgers import BANK, EPOCH, IDENTITY, Rig, transfer_id
from tests.support.naive_ledger import Ask

BLOCKS, CHECKPOINT = 8, 3


class ToldLog(MemoryLog):
    """A log that is read back as other blocks than were appended."""

    def __init__(self, log: MemoryLog, told: Sequence[Block]) -> None:
        super().__init__(IDENTITY, EPOCH)
        self.append([each.draft for each in log.blocks(1)])
        self._told = told

    def blocks(self, from_sequence: int) -> Iterator[Block]:
        return (each for each in self._told if each.draft.first_sequence >= from_sequence)


def written(salt: bytes = b"") -> Rig:
    """A shard with some blocks, and a checkpoint of the first of them."""
    rig = Rig()
    rig.open_bank()
    rig.open(10)
    for number in range(BLOCKS - 1):
        rig.seal()
        rig.transfer(Ask(transfer_id(number), BANK, 10, 1, metadata=salt))
        if number == CHECKPOINT - 1:
            rig.seal()
            rig.sync()
            rig.checkpoint()
    rig.seal()
    rig.sync()
    assert len(list(rig.log.blocks(1))) == BLOCKS
    return rig


def start(state: MemoryState, log: MemoryLog) -> int:
    """Starts from them; the latest sequence."""
    ledger, _ = recover(IDENTITY, Store(state, log), Limits(), LocalStateWriter(state, log))
    return ledger.sequence


def without(number: int) -> Callable[[list[Block], list[Block]], list[Block]]:
    return lambda own, _: [each for each in own if each.number != number]


def swapped(own: list[Block], _: list[Block]) -> list[Block]:
    return [*own[:5], own[6], own[5], *own[7:]]


def one_of_another(own: list[Block], other: list[Block]) -> list[Block]:
    return [*own[:5], other[5], *own[6:]]


DAMAGES: dict[str, Callable[[list[Block], list[Block]], list[Block]]] = {
    "the first behind the checkpoint is left out": without(CHECKPOINT + 2),
    "one in the middle is left out": without(6),
    "the last is left out": without(BLOCKS),
    "two have changed places": swapped,
    "one is of another history": one_of_another,
    "the last is of another history": lambda own, other: [*own[:-1], other[-1]],
}


def test_what_was_written_is_started_from() -> None:
    rig = written()
    assert start(rig.state, rig.log) == rig.ledger.sequence
    assert start(MemoryState(), rig.log) == rig.ledger.sequence


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
@pytest.mark.parametrize("with_state", [True, False])
def test_blocks_that_do_not_follow_are_refused(
    *, damage: Callable[[list[Block], list[Block]], list[Block]], with_state: bool
) -> None:
    rig, other = written(), written(b"other")
    told = damage(list(rig.log.blocks(1)), list(other.log.blocks(1)))
    state = rig.state if with_state else MemoryState()
    with pytest.raises(DamagedLogError):
        start(state, ToldLog(rig.log, told))


def test_a_state_of_another_history_is_refused() -> None:
    rig, other = written(), written(b"other")
    with pytest.raises(DamagedStateError, match="another block in its place"):
        start(other.state, rig.log)


@pytest.mark.parametrize(
    "identity",
    [
        LogIdentity(IDENTITY.cluster_id, IDENTITY.shard_id + 1),
        LogIdentity(cluster_id_of("another"), IDENTITY.shard_id),
    ],
)
def test_a_state_of_another_shard_is_refused(identity: LogIdentity) -> None:
    rig = written()
    with pytest.raises(DamagedStateError, match="another shard"):
        recover(identity, Store(rig.state, rig.log), Limits(), LocalStateWriter(rig.state, rig.log))


def test_a_record_that_does_not_go_on_from_the_state_is_the_states_damage() -> None:
    """The log is hashed, and what it says came before is what the state has forgotten."""
    rig, forgetful = written(), MemoryState()
    assert rig.state.checkpoint
    accounts = [account_row(rig.account(each)) for each in (BANK, 10)]
    forgetful.write_checkpoint(rig.log, Rows(accounts, [], []), rig.state.checkpoint)
    with pytest.raises(DamagedStateError, match=r"block 5 does not follow .*: record \d+ cannot"):
        start(forgetful, rig.log)


def test_a_record_that_cannot_be_true_is_the_logs_damage_where_there_is_no_state() -> None:
    rig, log = written(), MemoryLog(IDENTITY, EPOCH)
    first, second, *_ = rig.log.blocks(1)
    log.append([first.draft, replace(second.draft, records=first.draft.records[:128])])
    with pytest.raises(DamagedLogError, match=r"record 3 opens account 1 again"):
        start(MemoryState(), log)


def test_a_log_that_ends_before_its_state_is_refused() -> None:
    rig, short = written(), MemoryLog(IDENTITY, EPOCH)
    short.append([each.draft for each in rig.log.blocks(1)][: CHECKPOINT - 1])
    with pytest.raises(DamagedStateError, match="does not have"):
        start(rig.state, short)
