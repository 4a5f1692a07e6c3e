"""Redis doing a wallet's work: a Lua function for a transfer, the append-only file synced always.

Started and stopped here, on a free loopback port in a temporary folder, with `redis-benchmark` as
its client. That draws accounts uniformly only.
"""

import csv
import io
import shutil
import socket
import subprocess
import tempfile
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).parent
PROGRAMS = ("redis-server", "redis-benchmark", "redis-cli")
FUNDS_MINOR = 10**9  # Lua counts in doubles; sums of these stay exact
COMMAND_TIMEOUT_S = 300
START_TIMEOUT_S = 20.0
STOP_TIMEOUT_S = 20.0
_POLL_S = 0.05
_RANDOM = "__rand_int__"
_ID_PARTS = 4  # each of as many as there are accounts: no two ids of a run are the same


class RedisError(Exception):
    """It did not do what it was asked; the message says what it said."""


def is_installed() -> bool:
    """Whether all of its programs are there."""
    return all(shutil.which(program) for program in PROGRAMS)


@dataclass(frozen=True)
class Redis:
    """A running server.

    Attributes:
        port: on loopback.
        pid: its process id.
        accounts: how many it has.
    """

    port: int
    pid: int
    accounts: int

    def bench(self, clients: int, calls: int) -> float:
        """Make so many transfers, one a call, and return how many a second that was."""
        # It draws from a seed of time and process, which may come again: each run has its own ids.
        run = uuid.uuid4().hex
        made = _run(
            "redis-benchmark", "-h", "127.0.0.1", "-p", str(self.port), "-c", str(clients),
            "-n", str(calls), "-r", str(self.accounts), "--csv", "FCALL", "transfer", "0",
            run + _RANDOM * _ID_PARTS, _RANDOM, _RANDOM, _RANDOM, str(self.accounts),
        )  # fmt: skip
        header, row = list(csv.reader(io.StringIO(made)))[-2:]
        return float(row[header.index("rps")])

    def ask(self, *command: str) -> str:
        """Send one command and return its reply as text."""
        return _run("redis-cli", "-h", "127.0.0.1", "-p", str(self.port), "-e", *command).strip()

    def check(self, transfers: int) -> None:
        """See that so many transfers were made and that the books are right.

        Raises:
            RedisError: they are not.
        """
        made = int(self.ask("GET", "transfers"))
        sums = self.ask("FCALL", "check", "0", str(self.accounts), str(FUNDS_MINOR)).split()
        if made != transfers or sums != ["0", "0"]:
            raise RedisError(f"{made} transfers of {transfers}, the books are off by {sums}")


@contextmanager
def running(accounts: int) -> Iterator[Redis]:
    """Run a fresh server with accounts for as long as the context lasts."""
    with tempfile.TemporaryDirectory(prefix="doubloon-bench-redis-") as folder:
        port = _free_port()
        process = subprocess.Popen(
            [
                shutil.which("redis-server") or "redis-server",
                *("--bind", "127.0.0.1", "--port", str(port), "--dir", folder, "--save", ""),
                *("--appendonly", "yes", "--appendfsync", "always"),
                *("--auto-aof-rewrite-percentage", "0", "--daemonize", "no"),
            ],
            stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, start_new_session=True,
        )  # fmt: skip
        try:
            server = Redis(port, process.pid, accounts)
            _wait_until_it_answers(server, process)
            library = (HERE / "redis_wallet.lua").read_text(encoding="utf-8")
            server.ask("FUNCTION", "LOAD", library)
            server.ask("FCALL", "open_accounts", "0", str(accounts), str(FUNDS_MINOR))
            yield server
        finally:
            process.terminate()
            try:
                process.wait(STOP_TIMEOUT_S)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def _wait_until_it_answers(server: Redis, process: subprocess.Popen[bytes]) -> None:
    until_s = time.monotonic() + START_TIMEOUT_S
    while process.poll() is None and time.monotonic() < until_s:
        try:
            if server.ask("PING") == "PONG":
                return
        except RedisError:
            time.sleep(_POLL_S)
    raise RedisError(f"redis-server does not answer after {START_TIMEOUT_S:g} s")


def _run(program: str, *arguments: str) -> str:
    made = subprocess.run(
        [shutil.which(program) or program, *arguments],
        capture_output=True, text=True, check=False, timeout=COMMAND_TIMEOUT_S,
        start_new_session=True,
    )  # fmt: skip
    if made.returncode != 0 or "ERR" in made.stdout:
        raise RedisError(f"{program}: {made.stderr.strip()[-500:]} {made.stdout.strip()[-500:]}")
    return made.stdout


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
