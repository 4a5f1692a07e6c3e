"""PostgreSQL and Redis, each doing the same work with the same care."""

import asyncio
import time

from scripts.bench.cases.case import Case, Plan
from scripts.bench.load import Spread
from scripts.bench.peers import postgres, redis
from scripts.bench.peers.install import install
from scripts.bench.results import Figure, Outcome, Usage
from scripts.bench.usage import children, cpu_s
from scripts.progress import progress

CLIENTS = (1, 8, 32)
ARRAYS = (100, 1_000)
PREFILLED = 1_000_000
SECONDS = 5.0  # for each figure and repeat
REDIS_CALLS = ((1, 10_000), (50, 60_000))
"""Clients, and calls for each repeat: some seconds."""


async def _missing(plan: Plan, *packages: str) -> str:
    """Install what is missing if that was asked for; return why it is missing still."""
    if not plan.install_peers:
        return "not installed"
    why = await asyncio.to_thread(install, *packages)
    return f"not installed: {why}" if why else ""


def _postgres_case(spread: Spread) -> Case:
    name = f"postgres-{spread}"
    what = f"PostgreSQL, one transfer a call with pgbench, {spread}"

    async def run(plan: Plan) -> Outcome:
        if postgres.find() is None:
            why = await _missing(plan, "postgresql", "postgresql-client")
            if why:
                return Outcome(name, what, skipped=why)
        figures, usage = await asyncio.to_thread(_measure_postgres, plan, name, spread)
        return Outcome(name, what, figures, usage)

    return Case(name, what, run)


def _measure_postgres(plan: Plan, name: str, spread: Spread) -> tuple[list[Figure], Usage]:
    programs = postgres.find()
    assert programs is not None, "looked for already"
    seconds = SECONDS * min(1.0, plan.scale)
    arrays = ARRAYS if spread == "uniform" else ()
    runs: list[tuple[str, str, int, int]] = [
        (_clients(clients), f"postgres_{spread}", clients, 1) for clients in CLIENTS
    ]
    runs += [(f"arrays of {size:,}", "postgres_array", 1, size) for size in arrays]
    with postgres.running(programs) as server:
        server.create(plan.accounts)
        with progress(plan.console, f"{name}: prefill", 1) as advance:
            server.prefill(plan.scaled(PREFILLED, least=1_000), plan.accounts)
            advance(1)
        figures, before_s, made = [], _cpu_s(server.pid), int(server.sql(_COUNT))
        started_s = time.perf_counter()
        with progress(plan.console, name, len(runs) * plan.repeats) as advance:
            for label, script, clients, size in runs:
                rates = []
                for repeat in range(plan.repeats):
                    rate = server.bench(
                        script, clients, seconds, plan.seed + repeat,
                        accounts=plan.accounts, size=size,
                    )  # fmt: skip
                    rates.append(rate.per_second * size)
                    advance(1)
                figures.append(Figure(label, "/s", rates))
        took_s, used_s = time.perf_counter() - started_s, _cpu_s(server.pid) - before_s
        server.check()
        made = int(server.sql(_COUNT)) - made
    return figures, Usage(took_s, made, cpu_s={"postgres": used_s})


_COUNT = "SELECT count(*) FROM transfers"


def _cpu_s(postmaster: int) -> float:
    """Processor seconds of the server, those of ended connections included."""
    return cpu_s(postmaster, reaped=True) + sum(cpu_s(child) for child in children(postmaster))


async def _redis(plan: Plan) -> Outcome:
    """One transfer a call."""
    name, what = _REDIS
    if not redis.is_installed():
        why = await _missing(plan, "redis-server", "redis-tools")
        if why:
            return Outcome(name, what, skipped=why)
    figures, usage = await asyncio.to_thread(_measure_redis, plan)
    return Outcome(name, what, figures, usage)


def _measure_redis(plan: Plan) -> tuple[list[Figure], Usage]:
    figures, made = [], 0
    with redis.running(plan.accounts) as server:
        before_s, started_s = cpu_s(server.pid), time.perf_counter()
        with progress(plan.console, _REDIS[0], len(REDIS_CALLS) * plan.repeats) as advance:
            for clients, calls in REDIS_CALLS:
                rates = []
                for _ in range(plan.repeats):
                    count = plan.scaled(calls, clients)
                    rates.append(server.bench(clients, count))
                    made += count
                    advance(1)
                figures.append(Figure(_clients(clients), "/s", rates))
        took_s, used_s = time.perf_counter() - started_s, cpu_s(server.pid) - before_s
        server.check(made)
    return figures, Usage(took_s, made, cpu_s={"redis": used_s})


def _clients(count: int) -> str:
    return f"{count} clients" if count > 1 else "1 client"


_REDIS = ("redis-uniform", "Redis, one call of a Lua function a transfer, file synced always")

CASES = (
    _postgres_case("uniform"),
    _postgres_case("zipf"),
    Case(*_REDIS, _redis),
)
