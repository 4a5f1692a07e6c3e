"""A served shard's groups and transactions: what routers and coordinators say to it over gRPC."""

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

from doubloon.v1 import shard_service_pb2 as shard
from shard_node.ledger import KIND_SYSTEM
from tests.support.crossing import ANSWER, LIFE_US, RESOLUTION, VOTE, YES, Answer, Attempt, Move
from tests.support.engines import SHARD
from tests.support.shard_service import Served, served

# By their numbers, on the shard that is served; and one elsewhere.
ANN, BOB, POOR = 1_001, 1_002, 1_003
OTHER = 8_001


@asynccontextmanager
async def served_crossing() -> AsyncIterator[Served]:
    """Serves a shard on which Ann and Bob may go negative and the poor may not."""
    async with served() as it:
        await it.node.open(ANN, BOB)
        await it.node.engine.open_accounts([(POOR, KIND_SYSTEM, 0, 0)])
        yield it


def attempt(node: Served, number: int, *moves: Move, is_group: bool = False) -> Attempt:
    deadline_us = node.node.engine.clock_us + LIFE_US
    return Attempt(number, deadline_us, moves, number, is_group)


def joined(parts: Sequence[tuple[bytes, bytes, bytes]]) -> dict[str, Any]:
    headers, members, metadata = (b"".join(each) for each in zip(*parts, strict=True))
    return {"headers": headers, "members": members, "metadata": metadata}


def to_prepare(*attempts: Attempt) -> shard.PrepareRequest:
    return shard.PrepareRequest(**joined([each.packed(SHARD) for each in attempts]))


def to_decide(*attempts: Attempt, votes: bytes | None = None) -> shard.CommitHomeRequest:
    yes = VOTE.pack(*YES) * len(attempts)
    parts = joined([each.packed() for each in attempts])
    return shard.CommitHomeRequest(**parts, votes=yes if votes is None else votes)


def decisions(*attempts: Attempt, time_us: int = 0) -> bytes:
    return b"".join(
        each.transaction_id + (time_us or each.deadline_us).to_bytes(8, "little")
        for each in attempts
    )


async def prepare(node: Served, *attempts: Attempt) -> list[tuple[int, ...]]:
    answer = await node.call("Prepare", to_prepare(*attempts))
    assert answer.clock_us == node.node.engine.clock_us
    return list(VOTE.iter_unpack(answer.votes))


async def decide(node: Served, *attempts: Attempt, votes: bytes | None = None) -> list[Answer]:
    answer = await node.call("CommitHome", to_decide(*attempts, votes=votes))
    return [Answer(*each) for each in ANSWER.iter_unpack(answer.answers)]


async def resolve(node: Served, *attempts: Attempt) -> list[int]:
    answer = await node.call("Resolve", shard.ResolveRequest(transactions=decisions(*attempts)))
    return [fate for fate, _ in RESOLUTION.iter_unpack(answer.resolutions)]
