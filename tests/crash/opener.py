"""Opens damaged folders, each in a process of its own: a damaged page may end whoever reads it.

`python -m tests.crash.opener HISTORY [MUTANT]` reads lines of standard input, each a JSON list of a
look's name and a folder, forks, and answers with one line for each: a `Look` as JSON. The looks are
what `--verify-all` does, what an ordinary start does followed by questions about everything, and
one pass of the scrub.
"""

import asyncio
import json
import logging
import os
import pickle
import resource
import signal
import subprocess
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

from cluster.logs import configure
from shard_node.damage import DamagedStateError
from shard_node.records import DamagedLogError
from shard_node.scrubber import scrub_once
from shard_node.verify import verify_history
from tests.crash.mutants import plant
from tests.crash.verdict import NodeStoppedError, ask_everything
from tests.support import ROOT
from tests.support.folders import LIMITS, recovers
from tests.support.ledgers import IDENTITY

FINE = "fine"
REFUSED = "refused"  # before anything was served
STOPPED = "stopped"  # by a question or a command, whose caller was not answered
WRONG = "wrong"  # an answer that is not what was heard
KILLED = "killed"  # by a signal: LMDB read what no page can be; the interpreter says where
CRASHED = "crashed"  # by an exception that does not say what is damaged

LOOK_S_MAX = 20  # a look takes a fraction of a second; a damaged page may lead round in circles
VERIFY, SERVE, SCRUB = "verify", "serve", "scrub"


@dataclass(frozen=True)
class Look:
    """What a look at a folder came to.

    Attributes:
        verdict: one of the above.
        message: what it said.
    """

    verdict: str
    message: str = ""


class Opener:
    """The process; a context manager."""

    def __init__(self, history: Path, mutant: str = "") -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.crash.opener", str(history), mutant],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def look(self, how: str, folder: Path) -> Look:
        """Look at a folder; serving changes it."""
        assert self._process.stdin
        assert self._process.stdout
        self._process.stdin.write(json.dumps([how, str(folder)]) + "\n")
        self._process.stdin.flush()
        return Look(**json.loads(self._process.stdout.readline()))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        assert self._process.stdin
        assert self._process.stdout
        self._process.stdin.close()
        self._process.stdout.close()
        self._process.wait()


def _look(how: str, folder: Path, history: Path) -> Look:
    damaged = (DamagedLogError, DamagedStateError)
    try:
        if how == VERIFY:
            verify_history(folder, IDENTITY, LIMITS)
            return Look(FINE)
        if how == SCRUB:
            scrub_once(folder, IDENTITY, LIMITS)
            return Look(FINE)
        recovers(folder, identity=IDENTITY)
    except damaged as error:
        return Look(REFUSED, str(error))
    known = pickle.loads(history.read_bytes())
    try:
        asyncio.run(ask_everything(known, folder))
    except (*damaged, NodeStoppedError) as error:
        return Look(STOPPED, str(error))
    except AssertionError as error:
        return Look(WRONG, str(error))
    return Look(FINE)


def _in_child(how: str, folder: Path, history: Path) -> Look:
    """The look, in a process that may die of it."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reading)
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        signal.alarm(LOOK_S_MAX)
        try:
            found = _look(how, folder, history)
        except BaseException as error:  # noqa: BLE001 - whatever it is, it is the finding
            found = Look(CRASHED, f"{type(error).__name__}: {error}")
        os.write(writing, json.dumps(asdict(found)).encode())
        os._exit(0)
    os.close(writing)
    with os.fdopen(reading) as pipe:
        answer = pipe.read()
    _, status = os.waitpid(child, 0)
    if not answer:
        number = os.waitstatus_to_exitcode(status)
        return Look(KILLED, signal.Signals(-number).name) if number < 0 else Look(CRASHED)
    return Look(**json.loads(answer))


def main(history: Path, mutant: str = "") -> None:
    """Look until standard input ends."""
    plant(mutant)
    configure("opener", "", "human", logging.CRITICAL)
    for line in sys.stdin:
        how, folder = json.loads(line)
        sys.stdout.write(json.dumps(asdict(_in_child(how, Path(folder), history))) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main(Path(sys.argv[1]), *sys.argv[2:])
