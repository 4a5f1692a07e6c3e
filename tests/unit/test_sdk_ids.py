"""Transfer ids: the format of RFC 9562, order, and no two alike."""

import multiprocessing
import random
import threading
import uuid
from collections.abc import Callable

import pytest

import doubloon
from doubloon.ids import TransferIdMaker

MILLISECOND_NS = 1_000_000
START_NS = 1_700_000_000_000 * MILLISECOND_NS


class SetClock:
    def __init__(self, now_ns: int) -> None:
        self.now_ns = now_ns

    def __call__(self) -> int:
        return self.now_ns


def test_the_format_is_uuid_version_7() -> None:
    clock = SetClock(START_NS + 999_999)
    made = TransferIdMaker(clock).make()
    assert len(made) == 16
    assert doubloon.as_uuid(made) == uuid.UUID(bytes=made)
    assert (uuid.UUID(bytes=made).version, uuid.UUID(bytes=made).variant) == (7, uuid.RFC_4122)
    assert int.from_bytes(made[:6], "big") == START_NS // MILLISECOND_NS


@pytest.mark.parametrize("drawn", [bytes(10), b"\xff" * 10])
def test_extreme_randomness_keeps_version_variant_and_order(drawn: bytes) -> None:
    maker = TransferIdMaker(SetClock(START_NS), lambda length: drawn[:length])
    made = [maker.make() for _ in range(1_000)]
    assert made == sorted(set(made))
    assert {(uuid.UUID(bytes=each).version, each[8] >> 6) for each in made} == {(7, 0b10)}


def test_ids_increase_whatever_the_clock_does(rng: random.Random) -> None:
    clock = SetClock(START_NS)
    maker = TransferIdMaker(clock, rng.randbytes)
    made = []
    for _ in range(5_000):
        clock.now_ns += rng.choice([0, 0, 1, MILLISECOND_NS, -3_600_000 * MILLISECOND_NS])
        made.append(maker.make())
    assert made == sorted(set(made))


def test_a_new_millisecond_draws_new_bits() -> None:
    draws: list[int] = []

    def random_bytes(length: int) -> bytes:
        draws.append(length)
        return bytes([len(draws)] * length)

    clock = SetClock(START_NS)
    maker = TransferIdMaker(clock, random_bytes)
    first, second = maker.make(), maker.make()
    clock.now_ns += MILLISECOND_NS
    third = maker.make()
    assert int.from_bytes(second, "big") == int.from_bytes(first, "big") + 1
    assert third[8:] != second[8:]
    assert len(draws) == 2


def test_threads_never_make_the_same_id() -> None:
    made: list[list[bytes]] = [[] for _ in range(8)]

    def work(mine: list[bytes]) -> None:
        mine.extend(doubloon.new_transfer_id() for _ in range(5_000))

    threads = [threading.Thread(target=work, args=(mine,)) for mine in made]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(set().union(*made)) == 8 * 5_000
    assert all(mine == sorted(mine) for mine in made)


def _first_of_child(maker: TransferIdMaker, send: Callable[[bytes], None]) -> None:
    send(maker.make())


def test_a_forked_child_counts_from_other_bits() -> None:
    """A fresh interpreter forks, since this one may have threads that a fork would lose."""
    context = multiprocessing.get_context("spawn")
    receiving, sending = context.Pipe(duplex=False)
    process = context.Process(target=_fork_and_compare, args=(sending,))
    process.start()
    parents, childs = receiving.recv()
    process.join()
    assert parents[:6] == childs[:6], "both in the same millisecond, or this shows nothing"
    assert parents != childs


def _fork_and_compare(sending: "multiprocessing.connection.Connection") -> None:
    maker = TransferIdMaker(SetClock(START_NS))
    maker.make()
    receiving, child_sending = multiprocessing.get_context("fork").Pipe(duplex=False)
    child = multiprocessing.get_context("fork").Process(
        target=_first_of_child, args=(maker, child_sending.send)
    )
    child.start()
    childs = receiving.recv()
    child.join()
    sending.send((maker.make(), childs))
