"""Requests taken apart: well-formed ones whole, malformed ones refused with a place."""

import pytest

from cluster.packed import HEADER, MEMBER
from coordinator.transactions import MalformedRequest, take_apart
from tests.support.rounds import A1, A2, A3, TOPOLOGY, group, transfer
from tests.support.transaction_shards import pack_member

ID = b"i" * 16
PLAIN = transfer(1, A1[0], A2[0])
SALE = group(2, (A1[0], A2[0], 5), (A2[1], A3[0], 6), (A1[1], A3[1], 7), (A1[2], A1[3], 8))


def test_transfers_and_groups_in_their_order() -> None:
    items = take_apart(PLAIN + SALE + transfer(3, A3[0], A1[0]), b"")
    assert [(item.home, item.participants, item.size) for item in items] == [
        (1, (2,), 1),
        (1, (2, 3), 4),
        (3, (1,), 1),
    ]


def test_each_participant_gets_the_members_that_touch_it_with_their_metadata() -> None:
    texts = [b"zero", b"", b"two", b"three"]
    legs = [(A1[0], A2[0]), (A2[1], A3[0]), (A1[1], A3[1]), (A1[2], A1[3])]
    members = [
        pack_member(TOPOLOGY, 2, *leg, index=index, size=4, metadata=text)
        for index, (leg, text) in enumerate(zip(legs, texts, strict=True))
    ]
    other = pack_member(TOPOLOGY, 1, A3[0], A2[0], metadata=b"first")
    plain, sale = take_apart(other + b"".join(members), b"first" + b"".join(texts))
    for item in (plain, sale):
        item.begin(ID, 77)
    assert plain.for_participant(2) == (HEADER.pack(ID, 77, A3[0], 3, 1), other, b"first")
    assert sale.for_participant(2) == (
        HEADER.pack(ID, 77, A1[0], 1, 2), members[0] + members[1], b"zero",
    )  # fmt: skip
    assert sale.for_participant(3) == (
        HEADER.pack(ID, 77, A1[0], 1, 2), members[1] + members[2], b"two",
    )  # fmt: skip
    assert (sale.header, sale.members, sale.metadata) == (
        HEADER.pack(ID, 77, A1[0], 1, 4), b"".join(members), b"zerotwothree",
    )  # fmt: skip


def test_a_group_of_one_is_a_transaction_of_one_member() -> None:
    (item,) = take_apart(group(1, (A1[0], A2[0], 5)), b"")
    assert (item.home, item.participants, item.size) == (1, (2,), 1)


def without_shard(member: bytes) -> bytes:
    body, source_shard, _ = MEMBER.unpack(member)
    return MEMBER.pack(body, source_shard, 0)


@pytest.mark.parametrize(
    ("members", "metadata", "field", "index"),
    [
        (b"", b"", "members", -1),
        (PLAIN[:-1], b"", "members", -1),
        (PLAIN * 8_193, b"", "members", -1),
        (PLAIN, b"x", "metadata", -1),
        (pack_member(TOPOLOGY, 1, A1[0], A2[0], metadata=b"abc"), b"ab", "metadata", -1),
        (PLAIN + transfer(2, A1[0], A1[1]), b"", "members", 1),
        (PLAIN + without_shard(PLAIN), b"", "members", 1),
        (pack_member(TOPOLOGY, 1, A1[0], A2[0], index=1), b"", "members", 0),
        (PLAIN + SALE[:-72], b"", "members", 1),
        (SALE[72:] + PLAIN, b"", "members", 0),
        (SALE[:72] + SALE[144:216] + SALE[72:144] + SALE[216:], b"", "members", 1),
        (SALE[:72] + group(5, *[(A1[0], A2[0], 5)] * 4)[72:], b"", "members", 1),
        (SALE[:144] + PLAIN + SALE[216:], b"", "members", 2),
        (PLAIN + group(5, (A1[0], A1[1], 5), (A1[2], A1[3], 5)), b"", "members", 1),
        (group(5, *[(A1[0], A2[0], 1)] * 17), b"", "members", 0),
    ],
)
def test_what_is_malformed_is_refused_with_its_place(
    members: bytes, metadata: bytes, field: str, index: int
) -> None:
    with pytest.raises(MalformedRequest) as caught:
        take_apart(members, metadata)
    assert (caught.value.field, caught.value.index) == (field, index)
    assert str(caught.value).startswith(f"{field}: ")
