"""Bar 4: 64 clients that do not gather, each with a connection of its own and one call at a time.

`scripts/bench/http2.py` sends the calls, since a Python gRPC client would take more processor than
the servers. All calls are made before the clock starts. The bar is what PostgreSQL does in the same
run with 32 clients, one transfer a call.
"""

from scripts.bench.cases.case import Case, Plan, at_least
from scripts.bench.drive import Timeline, in_thread
from scripts.bench.http2 import Unary, UnaryLoad
from scripts.bench.load import Draw, Spread, unary_requests
from scripts.bench.results import Figure, Outcome
from scripts.latency import Latencies
from scripts.progress import progress

CONNECTIONS = 64
METHOD = "/doubloon.v1.WalletService/Transfer"
PEER_CLIENTS = 32


def timeline_of(made: Unary) -> Timeline:
    """Return the calls as those of any other case."""
    return Timeline(made.started_s, made.ends, Latencies(made.durations_s))


def _case(name: str, spread: Spread, routers: int, calls: int) -> Case:
    what = f"{CONNECTIONS} clients, one Transfer a call, {routers} router(s), {spread}"

    async def run(plan: Plan) -> Outcome:
        count = plan.scaled(calls, CONNECTIONS, plan.repeats)
        warm_up = plan.scaled(calls // 8, CONNECTIONS)
        async with plan.cluster(routers=routers) as rig:
            draw = Draw(plan.accounts, spread, plan.seed)
            for amount in (warm_up, count):
                messages = list(unary_requests(draw, amount, "uuid7"))
                load = UnaryLoad(rig.cluster.routers, METHOD, messages, CONNECTIONS)
                try:
                    with progress(plan.console, name, amount) as advance:
                        async with rig.measured() as section:
                            made = await in_thread(load.run)
                        advance(amount)
                finally:
                    load.close()
        assert section.usage is not None, "the section has ended"
        if section.usage.transfers != count:
            raise AssertionError(f"{section.usage.transfers} completed of {count}")
        timeline = timeline_of(made)
        peer = plan.outcomes.get(f"postgres-{spread}")
        bar = None
        if peer is not None and not peer.skipped:
            per_second = peer.figure(f"{PEER_CLIENTS} clients").median
            bar = at_least("4", per_second, f"PostgreSQL, {PEER_CLIENTS} clients, {spread}")
        figures = [
            Figure("transfers", "/s", timeline.rates(plan.repeats), bar),
            Figure("call p50", "ms", [timeline.latencies.percentile_ms(50)]),
            Figure("call p99", "ms", [timeline.latencies.percentile_ms(99)]),
            Figure("load generator", "µs/call", [made.cpu_s * 1e6 / count]),
        ]
        notes = [] if bar else ["no bar: PostgreSQL was not measured in this run"]
        return Outcome(name, what, figures, section.usage, notes)

    return Case(name, what, run)


CASES = (
    _case("unary", "uniform", 1, 60_000),
    _case("unary-zipf", "zipf", 1, 60_000),
    _case("unary-two-routers", "uniform", 2, 60_000),
)
