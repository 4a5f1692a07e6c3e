"""PostgreSQL and Redis, each doing the same work with the same care."""

import asyncio
import os
import threading
import time
from dataclasses import replace

from scripts.bench.cases.case import Case, Plan
from scripts.bench.drive import check_running, in_thread
from scripts.bench.load import Spread
from scripts.bench.peers import postgres, redis
from scripts.bench.peers.install import install
from scripts.bench.results import Figure, Outcome, Usage
from scripts.bench.usage import CLIENT, MachineWatch, children, cpu_s
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
        figures, usage = await in_thread(lambda stop: _measure_postgres(plan, name, spread, stop))
        return Outcome(name, what, figures, usage)

    return Case(name, what, run)


def _measure_postgres(
    plan: Plan, name: str, spread: Spread, stop: threading.Event
) -> tuple[list[Figure], Usage]:
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
        with progress(
            plan.console, f"{name}: prefill", plan.scaled(PREFILLED, least=1_000)
        ) as advance:
            for size in server.prefill(plan.scaled(PREFILLED, least=1_000), plan.accounts):
                advance(size)
                check_running(stop)
        figures, before_s, made = [], _cpu_s(server.pid), int(server.sql(_COUNT))
        ours_s, machine = _client_s(), MachineWatch()
        with progress(plan.console, name, len(runs) * plan.repeats) as advance:
            for label, script, clients, size in runs:
                rates = []
                for repeat in range(plan.repeats):
                    rate = server.bench(
                        script, clients, seconds, plan.seed + repeat,
                        accounts=plan.accounts, size=size,
                    )  # fmt: skip
                    rates.append(rate * size)
                    advance(1)
                    check_running(stop)
                figures.append(Figure(label, "/s", rates))
        usage = _usage("postgres", machine, _cpu_s(server.pid) - before_s, ours_s)
        server.check()
        made = int(server.sql(_COUNT)) - made
    return figures, replace(usage, transfers=made)


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
    figures, usage = await in_thread(lambda stop: _measure_redis(plan, stop))
    return Outcome(name, what, figures, usage)


def _measure_redis(plan: Plan, stop: threading.Event) -> tuple[list[Figure], Usage]:
    figures, made = [], 0
    with redis.running(plan.accounts) as server:
        before_s, ours_s, machine = cpu_s(server.pid), _client_s(), MachineWatch()
        with progress(plan.console, _REDIS[0], len(REDIS_CALLS) * plan.repeats) as advance:
            for clients, calls in REDIS_CALLS:
                rates = []
                for _ in range(plan.repeats):
                    count = plan.scaled(calls, clients)
                    rates.append(server.bench(clients, count))
                    made += count
                    advance(1)
                    check_running(stop)
                figures.append(Figure(_clients(clients), "/s", rates))
        usage = _usage("redis", machine, cpu_s(server.pid) - before_s, ours_s)
        server.check(made)
    return figures, replace(usage, transfers=made)


def _usage(server: str, machine: MachineWatch, server_s: float, client_before_s: float) -> Usage:
    """What server, clients and all others used; the transfers are counted later."""
    client_s = _client_s() - client_before_s
    return Usage(
        machine.seconds(),
        0,
        cpu_s={CLIENT: client_s, server: server_s},
        others_cpu_s=machine.others_s(client_s + server_s),
        stolen_cpu_s=machine.stolen_s(),
    )


def _client_s() -> float:
    """Processor seconds of this process and of all clients that it ran and that have ended."""
    return time.process_time() + sum(os.times()[2:4])


def _clients(count: int) -> str:
    return f"{count} clients" if count > 1 else "1 client"


_REDIS = ("redis-uniform", "Redis, one call of a Lua function a transfer, file synced always")

CASES = (
    _postgres_case("uniform"),
    _postgres_case("zipf"),
    Case(*_REDIS, _redis),
)
