"""The process that a fault befalls: a shard node's engine and its child, without gRPC and etcd.

`python -m tests.crash.driver PLAN`, where PLAN is a `Plan` as JSON. What a shard node does between
its start and its first request is done as it does it: lock, child, recovery, the epoch's block.
Each durable answer is one line of standard output (stream, its place in the stream, the answer in
hexadecimal), written after the answer was given; standard output is a file outside the folder.
"""

import asyncio
import gc
import json
import os
import sys
import traceback
from dataclasses import asdict, dataclass, replace
from itertools import islice
from pathlib import Path
from typing import NoReturn

from cluster import runtime
from cluster.clock import ManualClock
from cluster.logs import configure
from shard_node import startup
from shard_node.checkpointer import ChildStateWriter
from shard_node.damage import DamagedStateError
from shard_node.engine import Engine
from shard_node.limits import Limits
from shard_node.records import DamagedLogError
from tests.crash.mutants import plant
from tests.crash.workload import EPOCH_US, STREAMS, execute, stream
from tests.support.engines import START_US
from tests.support.folders import LIMITS
from tests.support.ledgers import IDENTITY

EXIT_DONE = 0
CHECKPOINT_ROWS = 60  # so that checkpoints are taken all the time
ACCOUNTS_CACHED = 5  # so that accounts are read from the state all the time

DRIVER_LIMITS = replace(LIMITS, checkpoint_rows=CHECKPOINT_ROWS, accounts_max=ACCOUNTS_CACHED)


@dataclass(frozen=True)
class Plan:
    """What a driver does.

    Attributes:
        folder: the data folder.
        seed, epoch: of the streams.
        commands: of each stream.
        mutant: the name of a planted bug; empty = none.
    """

    folder: str
    seed: int
    epoch: int
    commands: int
    mutant: str = ""

    def pack(self) -> str:
        return json.dumps(asdict(self))


async def main(plan: Plan) -> None:
    """Start as a node does, run all streams to their end, stop as a node does."""
    gc.disable()
    engine, writer = await start(Path(plan.folder), plan.epoch, DRIVER_LIMITS)
    prepared: set[bytes] = set()
    await run_stream(engine, plan, 0, prepared)
    streams = range(1, STREAMS + 1)
    await asyncio.gather(*(run_stream(engine, plan, each, prepared) for each in streams))
    await engine.stop()
    await writer.close()


async def start(folder: Path, epoch: int, limits: Limits) -> tuple[Engine, ChildStateWriter]:
    """From files to a running engine, in the order in which a node does it."""
    try:
        lock_fd = startup.lock_folder(folder)
        writer = await startup.start_writer(folder, IDENTITY, limits, lock_fd)
        wall = ManualClock(START_US + epoch * EPOCH_US)
        engine = startup.open_engine(
            folder, IDENTITY, epoch, limits, wall, writer, end_process, accept_empty=True
        )
    except (startup.FolderInUseError, DamagedLogError, DamagedStateError) as error:
        raise runtime.StartRefused(str(error)) from error
    await engine.start(epoch)
    return engine, writer


async def run_stream(engine: Engine, plan: Plan, number: int, prepared: set[bytes]) -> None:
    """Ask one command after the other, and report each answer."""
    commands = islice(stream(plan.seed, plan.epoch, number), plan.commands)
    for at, command in enumerate(commands):
        answer = await execute(engine, command, prepared)
        os.write(sys.stdout.fileno(), f"{number} {at} {answer.hex()}\n".encode())


def end_process(error: BaseException) -> NoReturn:
    """As the node does."""
    trace = "".join(traceback.format_exception(error))
    runtime.fatal(f"{type(error).__name__}: {error}", trace=trace)


def run(plan: Plan) -> NoReturn:
    """Run to the end, and exit as a node does."""
    configure("driver", str(plan.epoch), "human")
    plant(plan.mutant)
    runtime.run(lambda _: main(plan))


if __name__ == "__main__":
    run(Plan(**json.loads(sys.argv[1])))
