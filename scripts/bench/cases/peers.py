"""PostgreSQL and Redis, each doing the same work with the same care."""

import asyncio
import time

from scripts.bench.cases.case import Case, Plan
from scripts.bench.load import Spread
from scripts.bench.peers import postgres
from scripts.bench.results import Figure, Outcome, Usage
from scripts.bench.usage import children, cpu_s
from scripts.progress import progress

CLIENTS = (1, 8, 32)
ARRAYS = (100, 1_000)
PREFILLED = 1_000_000
SECONDS = 5.0  # for each figure and repeat
NOT_INSTALLED = "not installed"


def _postgres_case(spread: Spread) -> Case:
    name = f"postgres-{spread}"
    what = f"PostgreSQL, one transfer a call with pgbench, {spread}"

    async def run(plan: Plan) -> Outcome:
        programs = postgres.find()
        if programs is None:
            return Outcome(name, what, skipped=NOT_INSTALLED)
        return await asyncio.to_thread(_measure_postgres, plan, name, what, spread)

    return Case(name, what, run)


def _measure_postgres(plan: Plan, name: str, what: str, spread: Spread) -> Outcome:
    programs = postgres.find()
    assert programs is not None, "looked for already"
    seconds = SECONDS * min(1.0, plan.scale)
    arrays = ARRAYS if spread == "uniform" else ()
    runs: list[tuple[str, str, int, int]] = [
        (f"{clients} clients" if clients > 1 else "1 client", f"postgres_{spread}", clients, 1)
        for clients in CLIENTS
    ]
    runs += [(f"arrays of {size:,}", "postgres_array", 1, size) for size in arrays]
    with postgres.running(programs) as server:
        server.create(plan.accounts)
        with progress(plan.console, f"{name}: prefill", 1) as advance:
            server.prefill(plan.scaled(PREFILLED, least=1_000), plan.accounts)
            advance(1)
        figures = []
        before = _cpu(server.pid)
        started_s, made = time.perf_counter(), 0.0
        with progress(plan.console, name, len(runs) * plan.repeats) as advance:
            for label, script, clients, size in runs:
                rates = []
                for repeat in range(plan.repeats):
                    rate = server.bench(
                        script, clients, seconds, plan.seed + repeat,
                        accounts=plan.accounts, size=size,
                    )  # fmt: skip
                    rates.append(rate.per_second * size)
                    made += rate.per_second * size * seconds
                    advance(1)
                figures.append(Figure(label, "/s", rates))
        used_s = _cpu(server.pid) - before
        server.check()
    usage = Usage(time.perf_counter() - started_s, round(made), cpu_s={"postgres": used_s})
    return Outcome(name, what, figures, usage)


def _cpu(postmaster: int) -> float:
    """Processor seconds of the server, those of ended connections included."""
    return cpu_s(postmaster, reaped=True) + sum(cpu_s(child) for child in children(postmaster))


CASES = (_postgres_case("uniform"), _postgres_case("zipf"))
