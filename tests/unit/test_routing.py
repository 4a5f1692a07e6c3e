"""Splitting a batch by shard and putting its results together: tables, and a naive model."""

import random
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import pytest

from cluster.packed import (
    BODY,
    BODY_BYTES,
    GROUP_RESULT,
    MEMBER,
    RESULT,
    DifferingField,
)
from cluster.refusals import RefusalReason, retry_class
from cluster.topology import Topology
from doubloon.v1 import types_pb2
from doubloon.v1 import wallet_service_pb2 as wallet
from router.results import MalformedResults, Outcome, unpack, write_results
from router.routing import Packed, Rules, is_account_id, joined, split, split_accounts

TOPOLOGY = Topology.even([1, 2, 3])
RULES = Rules(TOPOLOGY, {"GOLD": 1, "GEM": 2}, allow_imports=False)
IMPORTING = Rules(TOPOLOGY, {"GOLD": 1, "GEM": 2}, allow_imports=True)

INVALID = types_pb2.FAULT_CODE_INVALID_ARGUMENT
DENIED = types_pb2.FAULT_CODE_PERMISSION_DENIED
COMPLETED = types_pb2.TRANSFER_STATUS_COMPLETED
POSTING = types_pb2.TRANSFER_STATUS_COMMITTED_POSTING
REFUSED = types_pb2.TRANSFER_STATUS_REFUSED
FAULT = types_pb2.TRANSFER_STATUS_FAULT


def accounts_of(shard_id: int, count: int) -> list[int]:
    """The first accounts that live on a shard."""
    found: list[int] = []
    account_id = 0
    while len(found) < count:
        account_id += 1
        if TOPOLOGY.shard_of(account_id) == shard_id:
            found.append(account_id)
    return found


ONE, OTHER = accounts_of(2, 2)
ELSEWHERE = accounts_of(3, 1)[0]


def transfer(**changes: Any) -> types_pb2.Transfer:
    """A well-formed transfer within shard 2, but for the changes."""
    fields = {
        "transfer_id": bytes(range(16)),
        "source_account_id": ONE,
        "destination_account_id": OTHER,
        "currency": "GOLD",
        "amount_minor": 5,
        "type": types_pb2.TRANSFER_TYPE_SALE,
        **changes,
    }
    return types_pb2.Transfer(**fields)


@pytest.mark.parametrize(
    ("changes", "code", "field"),
    [
        ({"transfer_id": b""}, INVALID, "transfer_id"),
        ({"transfer_id": bytes(15)}, INVALID, "transfer_id"),
        ({"transfer_id": bytes(17)}, INVALID, "transfer_id"),
        ({"source_account_id": 0}, INVALID, "source_account_id"),
        ({"source_account_id": 2**63}, INVALID, "source_account_id"),
        ({"source_account_id": 2**64 - 1}, INVALID, "source_account_id"),
        ({"destination_account_id": 0}, INVALID, "destination_account_id"),
        ({"destination_account_id": 2**63}, INVALID, "destination_account_id"),
        ({"currency": ""}, INVALID, "currency"),
        ({"currency": "gold"}, INVALID, "currency"),
        ({"currency": "1GOLD"}, INVALID, "currency"),
        ({"currency": "_GOLD"}, INVALID, "currency"),
        ({"currency": "GOLD\n"}, INVALID, "currency"),
        ({"currency": "GÖLD"}, INVALID, "currency"),
        ({"currency": "A" * 17}, INVALID, "currency"),
        ({"type": 0}, INVALID, "type"),
        ({"type": 8}, INVALID, "type"),
        ({"type": -1}, INVALID, "type"),
        ({"metadata": bytes(257)}, INVALID, "metadata"),
        ({"import_time_us": -1}, INVALID, "import_time_us"),
        ({"import_time_us": 1}, DENIED, "import_time_us"),
        # Of several, the first field in the order of the message is named.
        ({"transfer_id": b"", "source_account_id": 0, "type": 0}, INVALID, "transfer_id"),
        ({"currency": "", "metadata": bytes(257)}, INVALID, "currency"),
        ({"type": 0, "import_time_us": 1}, INVALID, "type"),
        # What is malformed is not also judged as business.
        ({"amount_minor": 0, "type": 0}, INVALID, "type"),
        ({"destination_account_id": ELSEWHERE, "import_time_us": 1}, DENIED, "import_time_us"),
    ],
)
def test_a_malformed_item_faults_alone(changes: dict[str, Any], code: int, field: str) -> None:
    batch = [transfer(reference=0), transfer(**changes), transfer(reference=2)]
    parts = split(enumerate(batch), RULES, "transfers")
    (fault,) = parts.answered.values()
    assert isinstance(fault, types_pb2.Fault)
    assert (fault.code, fault.field, fault.index) == (code, f"transfers.{field}", 1)
    assert fault.message
    assert not fault.indefinite
    assert parts.crossing is None
    assert parts.batches.keys() == {2}
    assert parts.batches[2].positions == [0, 2]


def test_a_batch_split_in_slices_is_split_as_a_whole(rng: random.Random) -> None:
    accounts = (ONE, OTHER, ELSEWHERE)
    batch = [
        transfer(
            source_account_id=rng.choice(accounts),
            destination_account_id=rng.choice(accounts),
            metadata=rng.randbytes(rng.choice((0, 0, 3))),
            type=rng.choice((0, 1, 1, 1)),
            reference=number,
        )
        for number in range(200)
    ]
    numbered = list(enumerate(batch))
    cuts = [0, *sorted(rng.sample(range(1, 200), rng.randrange(8))), 200]
    slices = [split(numbered[a:b], RULES, "transfers") for a, b in pairwise(cuts)]
    assert joined(slices) == split(numbered, RULES, "transfers")


@pytest.mark.parametrize(
    "changes",
    [
        {"transfer_id": b"\xff" * 16},
        {"source_account_id": 2**63 - 1},
        {"currency": "G"},
        {"currency": "A" * 16},
        {"currency": "Z9_"},
        {"type": 7},
        {"metadata": bytes(256)},
        {"reference": 2**64 - 1},
        {"amount_minor": 2**63 - 1},
        {"amount_minor": -(2**63)},
        {"destination_account_id": ONE},
    ],
)
def test_the_last_well_formed_values_pass(changes: dict[str, Any]) -> None:
    one_shard = Rules(Topology.even([9]), RULES.currency_numbers, allow_imports=False)
    parts = split([(0, transfer(**changes))], one_shard, "transfers")
    assert not parts.answered
    assert parts.crossing is None
    assert parts.batches[9].positions == [0]


@pytest.mark.parametrize(
    ("import_time_us", "field"), [(-1, "transfers.import_time_us"), (0, None), (1, None)]
)
def test_imports_where_they_are_allowed(import_time_us: int, field: str | None) -> None:
    parts = split([(0, transfer(import_time_us=import_time_us))], IMPORTING, "transfers")
    if field is None:
        assert BODY.unpack(parts.batches[2].records)[5] == import_time_us
    else:
        fault = parts.answered[0]
        assert isinstance(fault, types_pb2.Fault)
        assert (fault.code, fault.field) == (INVALID, field)


def test_a_body_holds_every_field() -> None:
    item = transfer(
        transfer_id=b"0123456789abcdef",
        amount_minor=-7,
        reference=2**64 - 1,
        import_time_us=99,
        currency="GEM",
        metadata=b"order 5",
        type=types_pb2.TRANSFER_TYPE_ADJUSTMENT,
    )
    batch = split([(0, item)], IMPORTING, "transfers").batches[2]
    assert BODY.unpack(batch.records) == (
        b"0123456789abcdef", ONE, OTHER, -7, 2**64 - 1, 99, 2, 7, 7,
    )  # fmt: skip
    assert batch.metadata == b"order 5"


def test_an_unregistered_currency_travels_as_0_to_be_refused_by_the_shard() -> None:
    batch = split([(0, transfer(currency="DUST"))], RULES, "transfers").batches[2]
    assert BODY.unpack(batch.records)[6] == 0


@pytest.mark.parametrize(
    ("changes", "goes"),
    [
        ({}, "crossing"),
        ({"currency": "DUST"}, RefusalReason.UNKNOWN_CURRENCY),
        ({"currency": "DUST", "amount_minor": 0}, RefusalReason.BAD_AMOUNT),
        ({"amount_minor": 0}, RefusalReason.BAD_AMOUNT),
        ({"amount_minor": -1}, RefusalReason.BAD_AMOUNT),
        ({"amount_minor": 0, "destination_account_id": OTHER}, "shard"),
        ({"destination_account_id": ONE}, "shard"),
        ({"amount_minor": 0, "destination_account_id": ONE}, "shard"),
    ],
)
def test_between_two_shards(changes: dict[str, Any], goes: object) -> None:
    item = transfer(**{"destination_account_id": ELSEWHERE, **changes})
    parts = split([(4, item)], RULES, "transfers")
    crossing = Packed([4], MEMBER.pack(body_of(item), 2, 3), b"", (2, 3))
    assert parts.crossing == (crossing if goes == "crossing" else None)
    assert [own.positions for own in parts.batches.values()] == ([[4]] if goes == "shard" else [])
    is_refused = isinstance(goes, RefusalReason)
    assert parts.answered == ({4: (REFUSED, goes, 0, 0, 0, 0)} if is_refused else {})


def body_of(item: types_pb2.Transfer) -> bytes:
    return BODY.pack(
        item.transfer_id, item.source_account_id, item.destination_account_id, item.amount_minor,
        item.reference, item.import_time_us, 1, len(item.metadata), item.type,
    )  # fmt: skip


def test_what_crosses_is_one_part_in_request_order_whatever_its_shards() -> None:
    first, third = accounts_of(1, 1)[0], accounts_of(3, 1)[0]
    batch = [
        transfer(destination_account_id=third, metadata=b"one"),
        transfer(),
        transfer(destination_account_id=first, reference=2, metadata=b"two"),
        transfer(destination_account_id=third, reference=3),
    ]
    crossing = split(enumerate(batch), RULES, "transfers").crossing
    assert crossing is not None
    assert crossing.positions == [0, 2, 3]
    assert crossing.metadata == b"onetwo"
    assert crossing.shards == (1, 2, 3)
    assert list(MEMBER.iter_unpack(crossing.records)) == [
        (body_of(batch[0]), 2, 3),
        (body_of(batch[2]), 2, 1),
        (body_of(batch[3]), 2, 3),
    ]


def test_transfer_types_have_no_gaps() -> None:
    known = sorted(types_pb2.TransferType.values())
    assert known == list(range(len(known)))


def random_transfer(rng: random.Random) -> types_pb2.Transfer:
    """Mostly well-formed; every kind of wrong is likely in a batch."""
    pools = [accounts_of(shard_id, 5) for shard_id in TOPOLOGY.shards]
    mine = rng.choice(pools)
    item = transfer(
        transfer_id=rng.randbytes(16),
        source_account_id=rng.choice(mine),
        destination_account_id=rng.choice(rng.choice(pools) if rng.random() < 0.2 else mine),
        currency=rng.choice(["GOLD", "GEM", "DUST"]),
        amount_minor=rng.choice([0, -1, 1, 2**63 - 1, rng.randrange(1, 10**6)]),
        type=rng.randrange(1, 8),
        reference=rng.randrange(2**64),
        metadata=rng.randbytes(rng.choice([0, 0, 1, 256])),
    )
    wrong: dict[str, Any] = {
        "transfer_id": b"",
        "source_account_id": 0,
        "destination_account_id": 2**63,
        "currency": "?",
        "type": 99,
        "metadata": bytes(257),
        "import_time_us": rng.choice([-5, 5]),
    }
    if rng.random() < 0.15:
        name = rng.choice(list(wrong))
        setattr(item, name, wrong[name])
    return item


def naive_answer(item: types_pb2.Transfer, index: int) -> types_pb2.TransferResult:
    """What becomes of one transfer, said without batches, bytes or shards' help."""
    wrong = [
        (len(item.transfer_id) != 16, "transfer_id", INVALID),
        (not is_account_id(item.source_account_id), "source_account_id", INVALID),
        (not is_account_id(item.destination_account_id), "destination_account_id", INVALID),
        (item.currency not in {"GOLD", "GEM", "DUST"}, "currency", INVALID),
        (not 1 <= item.type <= 7, "type", INVALID),
        (len(item.metadata) > 256, "metadata", INVALID),
        (item.import_time_us < 0, "import_time_us", INVALID),
        (item.import_time_us > 0, "import_time_us", DENIED),
    ]
    result = types_pb2.TransferResult(status=FAULT)
    for is_so, field, code in wrong:
        if is_so:
            result.fault.code, result.fault.field = code, f"transfers.{field}"
            result.fault.index = index
            return result
    if item.amount_minor <= 0:
        return naive_refusal(RefusalReason.BAD_AMOUNT)
    if item.source_account_id == item.destination_account_id:
        return naive_refusal(RefusalReason.SAME_ACCOUNT)
    if item.currency == "DUST":
        return naive_refusal(RefusalReason.UNKNOWN_CURRENCY)
    return types_pb2.TransferResult(
        status=COMPLETED, time_us=item.reference >> 1, source_balance_after_minor=item.amount_minor
    )


def naive_refusal(reason: RefusalReason) -> types_pb2.TransferResult:
    return types_pb2.TransferResult(
        status=REFUSED,
        refusal=types_pb2.Refusal(
            reason=types_pb2.RefusalReason.ValueType(reason),
            retry_class=types_pb2.RetryClass.ValueType(retry_class(reason)),
        ),
    )


def execute_naively(records: bytes, stride: int = BODY_BYTES) -> bytes:
    """Decides from the body alone, so that each result tells whose it is."""
    results = []
    for start in range(0, len(records), stride):
        _, source, destination, amount_minor, reference, _, currency, _, _ = BODY.unpack_from(
            records, start
        )
        if amount_minor <= 0:
            results.append(RESULT.pack(REFUSED, RefusalReason.BAD_AMOUNT, 0, 0, 0, 0))
        elif source == destination:
            results.append(RESULT.pack(REFUSED, RefusalReason.SAME_ACCOUNT, 0, 0, 0, 0))
        elif currency == 0:
            results.append(RESULT.pack(REFUSED, RefusalReason.UNKNOWN_CURRENCY, 0, 0, 0, 0))
        else:
            results.append(RESULT.pack(COMPLETED, 0, 0, 0, reference >> 1, amount_minor))
    return b"".join(results)


def test_random_batches_come_out_as_the_naive_model_says(rng: random.Random) -> None:
    for size in (1, 2, 7, 300, 300, 300):
        batch = [random_transfer(rng) for _ in range(size)]
        parts = split(enumerate(batch), RULES, "transfers")
        outcomes = dict(parts.answered)
        ways = [(own, BODY_BYTES) for own in parts.batches.values()]
        if parts.crossing is not None:
            ways.append((parts.crossing, MEMBER.size))
        for own, stride in ways:
            assert own.positions == sorted(own.positions)
            assert own.metadata == b"".join(batch[at].metadata for at in own.positions)
            rows = unpack(execute_naively(own.records, stride), own.positions)
            outcomes.update(zip(own.positions, rows, strict=True))
        response = wallet.TransferBatchResponse()
        write_results([outcomes[at] for at in range(size)], response.results.add)
        for index, (item, result) in enumerate(zip(batch, response.results, strict=True)):
            if result.HasField("fault"):
                assert result.fault.message
                result.fault.ClearField("message")  # for people
            assert result == naive_answer(item, index), item


def written(outcomes: Sequence[Outcome]) -> list[types_pb2.TransferResult]:
    response = wallet.TransferBatchResponse()
    write_results(outcomes, response.results.add)
    return list(response.results)


def test_a_repeated_result() -> None:
    assert written([(COMPLETED, 0, 0, 1, 123, -5)]) == [
        types_pb2.TransferResult(
            status=COMPLETED, repeat=True, time_us=123, source_balance_after_minor=-5
        )
    ]


@pytest.mark.parametrize("reason", RefusalReason, ids=lambda reason: reason.name)
def test_every_refusal_is_written_with_its_retry_class(reason: RefusalReason) -> None:
    differing = DifferingField.REFERENCE if reason is RefusalReason.KEY_REUSED else 0
    (result,) = written([(REFUSED, reason, differing, 0, 4, 8)])
    assert result.status == REFUSED
    assert int(result.refusal.reason) == reason
    assert int(result.refusal.retry_class) == retry_class(reason)
    assert result.refusal.differing_field == ("reference" if differing else "")
    assert not result.HasField("fault")
    assert (result.time_us, result.source_balance_after_minor) == (4, 8)


@pytest.mark.parametrize("differing", list(DifferingField)[1:], ids=lambda field: field.name)
def test_a_differing_field_is_named_as_in_the_message(differing: DifferingField) -> None:
    (result,) = written([(REFUSED, RefusalReason.KEY_REUSED, differing, 0, 0, 0)])
    messages = types_pb2.Transfer.DESCRIPTOR, wallet.Group.DESCRIPTOR
    assert any(result.refusal.differing_field in each.fields_by_name for each in messages)


@pytest.mark.parametrize(
    "row",
    [
        (0, 0, 0, 0, 0, 0),
        (FAULT, 0, 0, 0, 0, 0),
        (REFUSED, 0, 0, 0, 0, 0),
        (REFUSED, 99, 0, 0, 0, 0),
        (REFUSED, RefusalReason.KEY_REUSED, 0, 0, 0, 0),
        (REFUSED, RefusalReason.BAD_AMOUNT, 1, 0, 0, 0),
    ],
)
def test_what_no_shard_may_send_is_not_passed_on(row: tuple[int, int, int, int, int, int]) -> None:
    with pytest.raises(MalformedResults):
        written([row])


@pytest.mark.parametrize("size", [0, 1, 23, 25, 48])
def test_results_of_another_length_are_not_taken(size: int) -> None:
    with pytest.raises(MalformedResults):
        unpack(bytes(size), [0])


def test_packed_faults_are_told_apart_from_the_rest() -> None:
    rows = [
        (COMPLETED, 0, 0, 1, 9, 0, 5, -6),
        (FAULT, types_pb2.FAULT_CODE_UNAVAILABLE, 0, 0, 0, 0, 0, 0),
        (FAULT, types_pb2.FAULT_CODE_DEADLINE_EXCEEDED, 0, 0, 0, 1, 0, 0),
        (POSTING, 0, 0, 0, 0, 0, 7, 8),
        (REFUSED, RefusalReason.KEY_REUSED, DifferingField.TYPE, 0, 3, 0, 0, 0),
    ]
    packed = b"".join(GROUP_RESULT.pack(*row) for row in rows)
    found = unpack(packed, [10, 11, 12, 13, 14])
    assert found[0::3] == [(COMPLETED, 0, 0, 1, 5, -6), (POSTING, 0, 0, 0, 7, 8)]
    assert found[4] == (REFUSED, RefusalReason.KEY_REUSED, DifferingField.TYPE, 0, 0, 0)
    results = written(found)
    assert [
        (one.fault.code, one.fault.index, one.fault.indefinite, bool(one.fault.message))
        for one in results[1:3]
    ] == [
        (types_pb2.FAULT_CODE_UNAVAILABLE, 11, False, True),
        (types_pb2.FAULT_CODE_DEADLINE_EXCEEDED, 12, True, True),
    ]
    assert results[3] == types_pb2.TransferResult(
        status=POSTING, time_us=7, source_balance_after_minor=8
    )


@pytest.mark.parametrize("code", [0, 99])
def test_a_packed_fault_of_no_known_code_is_not_passed_on(code: int) -> None:
    with pytest.raises(MalformedResults):
        unpack(GROUP_RESULT.pack(FAULT, code, 0, 0, 0, 0, 0, 0), [0])


PLAYER, SYSTEM = types_pb2.ACCOUNT_KIND_PLAYER, types_pb2.ACCOUNT_KIND_SYSTEM


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({"account_id": 0, "kind": PLAYER}, "account_id"),
        ({"account_id": 2**63, "kind": PLAYER}, "account_id"),
        ({"account_id": 1}, "kind"),
        ({"account_id": 1, "kind": 3}, "kind"),
        ({"account_id": 1, "kind": PLAYER, "floor_minor": -1}, "floor_minor"),
        ({"account_id": 1, "kind": SYSTEM, "floor_minor": 1}, "floor_minor"),
        ({"account_id": 1, "kind": SYSTEM, "floor_minor": -(2**63)}, "floor_minor"),
        ({"account_id": 1, "kind": PLAYER, "cap_minor": -1}, "cap_minor"),
        ({"account_id": 1, "kind": PLAYER}, None),
        ({"account_id": 2**63 - 1, "kind": PLAYER, "cap_minor": 2**63 - 1}, None),
        ({"account_id": 1, "kind": SYSTEM, "floor_minor": -(2**63 - 1)}, None),
        ({"account_id": 1, "kind": SYSTEM, "floor_minor": 0, "cap_minor": 1}, None),
    ],
)
def test_accounts_to_open(fields: dict[str, Any], field: str | None) -> None:
    specs = [wallet.AccountSpec(account_id=ONE, kind=PLAYER), wallet.AccountSpec(**fields)]
    parts = split_accounts(specs, range(2), TOPOLOGY, "accounts")
    assert 0 in parts.positions[2]
    if field is None:
        assert not parts.answered
        assert 1 in parts.positions[TOPOLOGY.shard_of(fields["account_id"])]
    else:
        fault = parts.answered[1]
        assert (fault.code, fault.field, fault.index) == (INVALID, f"accounts.{field}", 1)
        assert not fault.indefinite
        assert [at for theirs in parts.positions.values() for at in theirs] == [0]
