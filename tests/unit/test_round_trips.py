"""Whatever we write down or send to ourselves comes back as it was, at its extremes too.

Rows of the state, blocks with records of every kind, the packed messages of two-phase commit, and
what is kept in etcd. What clients see has tests of its own; so have single formats, spelled there
byte by byte.
"""

import asyncio
import random
import struct
from collections.abc import Callable
from typing import Any

import hypothesis
import pytest
from hypothesis import strategies as st
from librt.strings import BytesWriter

from cluster.membership import Currency, Member, ShardInfo
from cluster.membership_codec import (
    currency_key,
    decode,
    encode_currency,
    encode_member,
    encode_shard,
    member_key,
    shard_key,
    topology_key,
)
from cluster.packed import (
    ANSWER,
    BODY_BYTES,
    DECISION,
    HEADER,
    MEMBER,
    MEMBER_BYTES,
)
from cluster.topology import Topology
from shard_node.books import (
    Account,
    Period,
    account_row,
    period_row,
    read_account_row,
    read_period_row,
)
from shard_node.clearing import clearing_row, read_clearing_row
from shard_node.legs import legs_on, split_members
from shard_node.records import (
    COMMITTED,
    HASH_BYTES,
    PREPARED,
    RecordKind,
    block_value,
    decode_block,
    write_committed,
    write_prepared,
)
from shard_node.rows import open_row, seal_row
from shard_node.state import Checkpoint
from shard_node.transactions import (
    Decided,
    Header,
    Prepared,
    StoredPrepared,
    Transactions,
    pack_answer,
    read_transaction_row,
    transaction_row,
)
from shard_node.unpacking import (
    decisions_of,
    groups_of,
    requests_to_decide,
    requests_to_prepare,
    transaction_ids_of,
)
from tests.support.crossing import (
    HERE,
    Attempt,
    CrossingRig,
    Move,
    pack_bodies,
    shard_of,
)
from tests.support.ledgers import IDENTITY, START_US, fold_of, tables
from tests.support.properties import settings
from tests.support.schedules import MANY, history, play

EXAMPLES = 40

u8, u16 = st.integers(0, 2**8 - 1), st.integers(0, 2**16 - 1)
u64, i64 = st.integers(0, 2**64 - 1), st.integers(-(2**63), 2**63 - 1)
wide = st.integers(0, 2**127)
ids = st.binary(min_size=16, max_size=16)
account_ids = st.integers(1, 2**63 - 1)
texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=64)


def holds(given: st.SearchStrategy[Any], check: Callable[[Any], None], seed: int) -> None:
    """Checks many examples under the run's seed."""
    decorated = hypothesis.seed(seed)(settings(EXAMPLES)(hypothesis.given(given)(check)))
    decorated()


# --- rows -----------------------------------------------------------------------------------------

accounts = st.builds(Account, account_ids, u8, u8, i64, i64, i64, i64, texts, changed_sequence=u64)
periods = st.builds(
    Period, *(st.integers(0, 2**63 - 1), u64), *(wide, wide, u64, u64), *(wide, wide),
    *(u64, u64), u64, i64, u16,
)  # fmt: skip
headers = st.builds(Header, ids, i64, u64, u16, u8)


ATTRIBUTES = (
    *("account_id", "kind", "status", "floor_minor", "cap_minor", "opened_us"),
    *("status_time_us", "status_reason", "changed_sequence"),
)


def test_rows_of_accounts(seed: int) -> None:
    def check(account: Account) -> None:
        read = read_account_row(*account_row(account))
        for field in ATTRIBUTES:
            assert getattr(read, field) == getattr(account, field)

    holds(accounts, check, seed)


def test_rows_of_periods(seed: int) -> None:
    def check(given: tuple[int, int, Period]) -> None:
        account_id, currency, period = given
        assert read_period_row(*period_row(account_id, currency, period)) == period

    holds(st.tuples(account_ids, u16, periods), check, seed)


def test_rows_of_clearing(seed: int) -> None:
    def check(given: tuple[tuple[int, int], int]) -> None:
        assert read_clearing_row(*clearing_row(*given)) == given

    holds(st.tuples(st.tuples(u16, u16), st.integers(-(2**127), 2**127 - 1)), check, seed)


def test_rows_of_transactions(seed: int) -> None:
    def check(given: tuple[Header, Header, int, bytes, list[int]]) -> None:
        one, two, since_us, rest, shards = given
        members, metadata = rest[: len(rest) // 2], rest[len(rest) // 2 :]
        key, size = bytes(range(24)), len(shards)
        table = Transactions()
        table.add_prepared(Prepared(one, since_us, members, metadata, (), ()))
        decided = Decided(two, since_us, key, size, tuple(shards))
        table.add_decided(decided)
        found = [transaction_row(*each) for each in table.take_changed()]
        rows = {key: read_transaction_row(value) for key, value in found if value}
        stored = StoredPrepared(one, since_us, members, metadata)
        assert rows == {one.transaction_id: stored, two.transaction_id: decided}

    two = st.tuples(headers, headers).filter(
        lambda it: it[0].transaction_id != it[1].transaction_id
    )
    rest = st.tuples(i64, st.binary(max_size=300), st.lists(u16, max_size=16))
    holds(st.tuples(two, rest).map(lambda it: (*it[0], *it[1])), check, seed)


def test_checkpoints_headers_and_seals(seed: int) -> None:
    def check(given: tuple[Checkpoint, Header, bytes, bytes]) -> None:
        checkpoint, header, key, body = given
        assert Checkpoint.unpack(checkpoint.pack()) == checkpoint
        assert Header.unpack(header.pack() + key) == header
        assert open_row(key, seal_row(key, body)) == body

    digest = st.binary(min_size=HASH_BYTES, max_size=HASH_BYTES)
    checkpoints = st.builds(Checkpoint, ids, u16, u64, digest, u64, u64, i64)
    holds(st.tuples(checkpoints, headers, st.binary(), st.binary()), check, seed)


def test_what_is_written_word_by_word_is_what_its_struct_packs(seed: int) -> None:
    assert MEMBER.size == MEMBER_BYTES

    def check(given: tuple[Header, bytes, tuple[int, int, int], tuple[int, ...], int]) -> None:
        header, body, (size, participant, offset), small, minor = given
        packed = HEADER.pack(
            header.transaction_id,
            header.deadline_us,
            header.first_source,
            header.home,
            header.members_count,
        )
        assert header.pack() == packed
        assert Header.unpack(packed) == Header.unpack(b"before" + packed, 6) == header

        writer = BytesWriter()
        header.write(writer)
        write_prepared(writer, offset, size)
        effects = PREPARED.pack(RecordKind.PREPARED, offset, size)
        assert writer.getvalue() == packed.ljust(BODY_BYTES, b"\0") + effects

        writer, named = BytesWriter(), (header.transaction_id, header.deadline_us)
        write_committed(writer, body, size, participant, offset, *named)
        effects = COMMITTED.pack(RecordKind.COMMITTED, size, participant, offset, *named)
        assert writer.getvalue() == body + effects

        answer = pack_answer(
            small[0],
            small[1],
            reason=small[2],
            differing=small[3],
            repeat=bool(small[4] & 1),
            index=small[5],
            unposted=bool(small[6] & 1),
            time_us=header.deadline_us,
            minor=minor,
            decided_us=offset,
            transaction_id=header.transaction_id,
        )
        bools = (*small[:4], small[4] & 1, small[5], small[6] & 1)
        times = header.deadline_us, minor, offset
        assert answer == ANSWER.pack(*bools, *times, header.transaction_id)

    offsets = st.integers(0, 2**31 - 1)
    bodies = st.binary(min_size=BODY_BYTES, max_size=BODY_BYTES)
    fields = st.tuples(u8, u16, offsets)
    holds(st.tuples(headers, bodies, fields, st.tuples(*[u8] * 7), i64), check, seed)


def test_a_header_that_is_cut_short_is_told() -> None:
    with pytest.raises(struct.error):
        Header.unpack(bytes(HEADER.size - 1))


# --- blocks ---------------------------------------------------------------------------------------


def test_blocks_of_every_kind_of_record_are_replayed_from_their_bytes(rng: random.Random) -> None:
    rig = CrossingRig()
    play(rig, history(rng, 300), MANY, rng)
    again = type(rig.log)(IDENTITY, 1)
    for block in rig.log.blocks(1):
        value = block_value(IDENTITY, block)
        read = decode_block(IDENTITY, block.draft.first_sequence, value)
        assert read == block
        again.append([read.draft])
    assert again.last == rig.log.last, "the same hash, so every byte before it"
    assert fold_of(again) == tables(rig.state)


# --- messages of two-phase commit -----------------------------------------------------------------

elsewhere = st.sampled_from((8_001, 8_002, 9_001))
here = st.integers(1, 999)
metadata = st.one_of(st.just(b""), st.binary(max_size=256))
rest_of_move = st.tuples(
    st.integers(1, 2**63 - 1), st.integers(1, 2**16 - 1), metadata, u64, st.integers(1, 7),
    st.integers(0, 2**63 - 1),
)  # fmt: skip


def _moves(sources: Any, destinations: Any) -> st.SearchStrategy[Move]:
    pairs = st.tuples(sources, destinations).filter(lambda pair: pair[0] != pair[1])
    return st.tuples(pairs, rest_of_move).map(lambda it: Move(*it[0], *it[1]))


anybody = st.one_of(here, elsewhere)
attempts = st.builds(
    lambda number, first, rest, key, is_group: Attempt(
        number, START_US + number % 10_000_000, (first, *(rest if is_group else ())), key, is_group
    ),
    st.integers(1, 2**95),
    st.one_of(_moves(here, elsewhere), _moves(elsewhere, here)),
    st.lists(_moves(anybody, anybody), max_size=15),
    st.integers(1, 2**127),
    st.booleans(),
)


def test_calls_of_two_phase_commit_are_taken_apart_as_they_were_put_together(seed: int) -> None:
    def check(given: list[Attempt]) -> None:
        to_home = [each for each in given if each.home == HERE]
        to_participant = [each for each in given if each.home != HERE]
        for some, shard in ((to_home, 0), (to_participant, HERE)):
            if not some:
                continue
            headers = b"".join(each.packed(shard)[0] for each in some)
            members, told = (b"".join(each.packed(shard)[at] for each in some) for at in (1, 2))
            if shard:
                found = asyncio.run(requests_to_prepare(headers, members, told, HERE))
            else:
                found = asyncio.run(requests_to_decide(headers, members, told, HERE, START_US))
            assert found == [each.request(shard) for each in some]
            for request, attempt in zip(found, some, strict=True):
                split = split_members(request.members, request.metadata)
                wanted = [
                    (move.metadata, *shards)
                    for move in attempt.moves
                    for shards in [(shard_of(move.source), shard_of(move.destination))]
                    if not shard or shard in shards
                ]
                shown = [(one.metadata, one.source_shard, one.destination_shard) for one in split]
                assert shown == wanted
                amounts = [
                    (leg.incoming, leg.account_id, leg.amount_minor, leg.import_us, leg.peer)
                    for leg in legs_on(split, HERE)
                ]
                assert amounts == sides_here(attempt)

    holds(st.lists(attempts, min_size=1, max_size=6), check, seed)


def sides_here(it: Attempt) -> list[tuple[bool, int, int, int, int]]:
    """The legs on this shard, in their order."""
    sides = []
    for move in it.moves:
        both = ((False, move.source, move.destination), (True, move.destination, move.source))
        for incoming, own, other in both:
            if shard_of(own) == HERE:
                what = move.amount_minor, move.import_us, shard_of(other)
                sides.append((incoming, own, *what))
    return sides


def test_calls_of_groups_are_taken_apart_as_they_were_put_together(seed: int) -> None:
    def check(given: list[tuple[bytes, list[Move]]]) -> None:
        bodies = b"".join(b"".join(pack_bodies(*each, is_group=True)) for each in given)
        told = b"".join(move.metadata for _, moves in given for move in moves)
        found = groups_of(bodies, told, HERE)
        assert [[member.metadata for member in group] for group in found] == [
            [move.metadata for move in moves] for _, moves in given
        ]
        assert b"".join(member.body for group in found for member in group) == bodies
        assert {(m.source_shard, m.destination_shard) for group in found for m in group} == {
            (HERE, HERE)
        }

    group = st.tuples(ids, st.lists(_moves(here, here), min_size=1, max_size=16))
    holds(st.lists(group, min_size=1, max_size=5), check, seed)


def test_decisions(seed: int) -> None:
    def check(given: list[tuple[bytes, int]]) -> None:
        packed = b"".join(DECISION.pack(*each) for each in given)
        assert decisions_of(packed, "decisions") == given
        assert transaction_ids_of(b"".join(each[0] for each in given), "ids") == [
            each[0] for each in given
        ]

    one = st.tuples(ids, st.integers(1, 2**63 - 1))
    holds(st.lists(one, min_size=1, max_size=20), check, seed)


# --- what is in etcd ------------------------------------------------------------------------------

names = st.from_regex(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}", fullmatch=True)


def test_what_the_membership_keeps(seed: int) -> None:
    def check(given: tuple[Any, ...]) -> None:
        role, member_id, address, number, others, code, scale, text = given
        member = Member(role, member_id, address, text, number)
        assert decode("c", member_key("c", role, member_id), encode_member(member)) == member
        shard = ShardInfo(1 + number % 65_535, 1 + number, member_id, tuple(others))
        assert decode("c", shard_key("c", shard.shard_id), encode_shard(shard)) == shard
        currency = Currency(code, 1 + number % 65_535, scale, text[:16])
        assert decode("c", currency_key("c", code), encode_currency(currency)) == currency
        topology = Topology.even(range(1, 2 + scale), version=1 + number)
        assert decode("c", topology_key("c"), topology.to_json()) == topology

    codes = st.from_regex(r"[A-Z][A-Z0-9_]{0,15}", fullmatch=True)
    printable = st.text(st.characters(exclude_categories=["C", "Z"]), min_size=1, max_size=64)
    scales, addresses = st.integers(0, 18), printable
    numbers = st.integers(0, 2**53)
    given = names, names, addresses, numbers, st.lists(names, max_size=3), codes, scales, printable
    holds(st.tuples(*given), check, seed)
