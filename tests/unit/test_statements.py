"""Statements against the list of all entries: every order, range, page size and token."""

import random
from collections.abc import Callable
from dataclasses import replace
from itertools import combinations_with_replacement, product

import pytest

from shard_node.errors import BadRequestError
from shard_node.queries import AccountHistory, Leg, StatementRequest, statement
from tests.support.histories import FOR_EVER_US, HOT, MIXED, PLAYERS, World, grown_world
from tests.support.ledgers import BANK, START_US
from tests.support.naive_ledger import Entry


@pytest.fixture(params=["held", "released"])
def world(rng: random.Random, request: pytest.FixtureRequest) -> World:
    return grown_world(rng, released=request.param == "released")


def histories(world: World, account_id: int, currency: int) -> list[AccountHistory]:
    numbers = [currency] if currency else sorted(world.rig.account(account_id).balances)
    return [world.rig.history(account_id, each) for each in numbers]


def page(world: World, request: StatementRequest) -> tuple[list[Leg], bytes]:
    return statement(histories(world, request.account_id, request.currency), request)


def read_through(world: World, request: StatementRequest) -> list[Leg]:
    legs, token = page(world, request)
    while token:
        more, token = page(world, replace(request, page_token=token))
        assert more, "a token promises at least one entry more"
        legs += more
    return legs


def shown(legs: list[Leg]) -> list[tuple[object, ...]]:
    return [
        (
            leg.time_us,
            leg.sequence,
            leg.transfer.currency,
            leg.transfer.amount_minor if leg.incoming else -leg.transfer.amount_minor,
            leg.balance_minor,
            leg.transfer.transfer_id,
        )
        for leg in legs
    ]


def wanted(entries: list[Entry], request: StatementRequest) -> list[tuple[object, ...]]:
    inside = [each for each in entries if request.from_us <= each.time_us < request.to_us]
    ordered = sorted(inside, key=lambda each: each[:2], reverse=not request.oldest_first)
    return [
        (each.time_us, each.sequence, each.currency, each.amount_minor, each.balance_minor,
         each.ask.transfer_id)
        for each in ordered
    ]  # fmt: skip


ALL = StatementRequest(HOT, 0, 0, FOR_EVER_US, oldest_first=False, page_size=1_000, page_token=b"")


@pytest.mark.parametrize("oldest_first", [False, True])
def test_a_statement_is_every_entry_in_order(*, world: World, oldest_first: bool) -> None:
    for account_id, currency in product(PLAYERS, (0, 1, 2, 3)):
        entries = world.entries(account_id, currency or None)
        some = sorted({each.time_us for each in world.rng.sample(entries, min(3, len(entries)))})
        times = [0, START_US, *some, *(each + 1 for each in some), FOR_EVER_US]
        for from_us, to_us in combinations_with_replacement(sorted(times), 2):
            request = replace(
                ALL, account_id=account_id, currency=currency, from_us=from_us, to_us=to_us,
                oldest_first=oldest_first, page_size=world.rng.choice((1_000, 100, 37)),
            )  # fmt: skip
            assert shown(read_through(world, request)) == wanted(entries, request)


@pytest.mark.parametrize("oldest_first", [False, True])
def test_pages_of_every_size_make_the_same_statement(*, world: World, oldest_first: bool) -> None:
    for currency in (0, 1):
        entries = world.entries(MIXED, currency or None)
        request = replace(ALL, account_id=MIXED, currency=currency, oldest_first=oldest_first)
        whole = wanted(entries, request)
        for size in (*range(1, 12), *range(12, len(whole), 9), len(whole) - 1, len(whole)):
            assert shown(read_through(world, replace(request, page_size=size))) == whole
        assert page(world, replace(request, page_size=len(whole)))[1] == b"", "no token at the end"


def test_new_entries_do_not_disturb_a_statement_under_way(world: World) -> None:
    """Also in a currency that the account did not have when the statement was begun."""
    old = world.entries(MIXED)
    newest, oldest = (
        replace(ALL, account_id=MIXED, page_size=7, oldest_first=each) for each in (False, True)
    )
    first_newest, token_newest = page(world, newest)
    first_oldest, token_oldest = page(world, oldest)
    world.rig.wall.advance(1)
    world.transfer(BANK, MIXED, 3, currency=9)
    world.transfer(BANK, MIXED, 3, currency=1)
    world.rig.seal()
    rest = read_through(world, replace(newest, page_token=token_newest))
    assert shown(first_newest + rest) == wanted(old, newest)
    rest = read_through(world, replace(oldest, page_token=token_oldest))
    assert shown(first_oldest + rest) == wanted(world.entries(MIXED), oldest)


def test_a_statement_goes_on_after_the_account_left_memory(world: World) -> None:
    request = replace(ALL, page_size=9)
    legs, token = page(world, request)
    world.rig.finish_checkpoint()
    world.rig.checkpoint()
    world.rig.crash()
    legs += read_through(world, replace(request, page_token=token))
    assert shown(legs) == wanted(world.entries(HOT), request)


def test_an_earlier_end_on_the_way_cuts_the_rest(world: World) -> None:
    request = replace(ALL, page_size=5)
    _, token = page(world, request)
    earlier_us = world.entries(HOT)[20].time_us
    cut = replace(request, to_us=earlier_us)
    legs = read_through(world, replace(cut, page_token=token))
    assert shown(legs) == wanted(world.entries(HOT), cut)


SPOILED: dict[str, Callable[[bytes], bytes]] = {
    "truncated": lambda token: token[:-1],
    "one byte": lambda token: token[:1],
    "longer": lambda token: token + b"\0",
    "zeros": lambda token: bytes(len(token)),
    "ones": lambda token: b"\xff" * len(token),
    **{
        f"byte {at}": lambda token, at=at: token[:at] + bytes([token[at] ^ 0x80]) + token[at + 1 :]  # type: ignore[misc]  # lambda's default
        for at in range(24)
    },
}


@pytest.mark.parametrize("spoil", SPOILED.values(), ids=SPOILED)
@pytest.mark.parametrize("oldest_first", [False, True])
def test_a_spoiled_token_is_refused_naming_the_field(
    *, spoil: Callable[[bytes], bytes], oldest_first: bool
) -> None:
    world = World(random.Random(1))
    for _ in range(3):
        world.transfer(BANK, HOT, 5)
    request = replace(ALL, page_size=1, oldest_first=oldest_first)
    _, token = page(world, request)
    with pytest.raises(BadRequestError) as caught:
        page(world, replace(request, page_token=spoil(token)))
    assert caught.value.field == "page_token"


@pytest.mark.parametrize(
    "other",
    [{"account_id": MIXED}, {"currency": 1}, {"from_us": 1}, {"oldest_first": True}],
    ids=str,
)
def test_a_token_of_another_request_is_refused(world: World, other: dict[str, int]) -> None:
    request = replace(ALL, page_size=1)
    _, token = page(world, request)
    with pytest.raises(BadRequestError) as caught:
        page(world, replace(request, page_token=token, **other))  # type: ignore[arg-type]  # a table of mixed fields
    assert caught.value.field == "page_token"
    legs, _ = page(world, replace(request, page_token=token, page_size=4))
    assert len(legs) == 4, "the size may change on the way"
