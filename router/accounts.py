"""Opens batches of accounts. Opening is idempotent, so whatever failed may be sent again."""

import asyncio
from collections.abc import Sequence
from typing import Final

import grpc

from cluster.faults import Fault
from cluster.shard_client import OPEN_ACCOUNTS
from cluster.shard_pool import ShardPool
from doubloon.v1 import types_pb2
from doubloon.v1 import wallet_service_pb2 as wallet
from router.routing import split_accounts
from router.scatter import Part, Parts, scatter

_PATH = "accounts"

TURN_ACCOUNTS_MAX: Final = 1_024
"""Accounts that are taken apart in one turn of the event loop: some 2 ms."""


async def open_accounts(
    pool: ShardPool, specs: Sequence[wallet.AccountSpec], deadline_s: float
) -> wallet.OpenAccountsResponse:
    """Open 1 … 8,192 accounts; the response has one result for each, in their order.

    Raises:
        Fault: definite: no shard attempted any of them.
    """
    batch = _Opening(pool, specs)
    await scatter(batch, len(specs), pool, deadline_s)
    return wallet.OpenAccountsResponse(results=[batch.results[at] for at in range(len(specs))])


class _Opening:
    """A `Batch` of accounts to open."""

    def __init__(self, pool: ShardPool, specs: Sequence[wallet.AccountSpec]) -> None:
        self._pool = pool
        self._specs = specs
        self.results: dict[int, wallet.OpenAccountResult] = {}

    async def take_apart(self, positions: Sequence[int]) -> Parts[wallet.OpenAccountsRequest]:
        topology = self._pool.topology
        parts: dict[int, Part[wallet.OpenAccountsRequest]] = {}
        for start in range(0, len(positions), TURN_ACCOUNTS_MAX):
            if start:
                await asyncio.sleep(0)
            some = positions[start : start + TURN_ACCOUNTS_MAX]
            split = split_accounts(self._specs, some, topology, _PATH)
            for position, fault in split.answered.items():
                self.write_fault(position, fault)
            for shard_id, theirs in split.positions.items():
                part = parts.setdefault(shard_id, Part([], wallet.OpenAccountsRequest()))
                part.positions.extend(theirs)
                part.payload.accounts.extend([self._specs[at] for at in theirs])
        return Parts(topology.version, parts)

    async def ask(
        self,
        shard_id: int,
        part: Part[wallet.OpenAccountsRequest],
        topology_version: int,
        deadline_s: float,
    ) -> wallet.OpenAccountsResponse:
        response = await self._pool.call(
            shard_id, OPEN_ACCOUNTS, part.payload, topology_version, deadline_s
        )
        if len(response.results) != len(part.positions):
            raise Fault(
                grpc.StatusCode.INTERNAL,
                f"shard {shard_id} sent {len(response.results)} results"
                f" for {len(part.positions)} accounts",
            )
        return response

    def write(
        self, part: Part[wallet.OpenAccountsRequest], answer: wallet.OpenAccountsResponse
    ) -> None:
        self.results.update(zip(part.positions, answer.results, strict=True))

    def write_fault(self, position: int, fault: types_pb2.Fault) -> None:
        self.results[position] = wallet.OpenAccountResult(
            status=wallet.OPEN_ACCOUNT_STATUS_FAULT, fault=fault
        )
