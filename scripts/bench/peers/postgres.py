"""PostgreSQL doing a wallet's work, started and stopped here.

The server is Debian's, on a free loopback port in a temporary folder, and runs as an unprivileged
user when we are root (it refuses root). It is set up for this: fsync and synchronous_commit on, 2
GiB of shared buffers, checkpoints far apart.
"""

import os
import pwd
import re
import shutil
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

HERE = Path(__file__).parent
DEBIAN = Path("/usr/lib/postgresql")
PROGRAMS = ("initdb", "pg_ctl", "createdb", "psql", "pgbench")
UNPRIVILEGED = ("postgres", "nobody")
START_TIMEOUT_S = 60
COMMAND_TIMEOUT_S = 600  # prefilling a million transfers on a slow disk
SETTINGS = (
    "fsync=on", "synchronous_commit=on", "full_page_writes=on", "shared_buffers=2GB",
    "max_wal_size=16GB", "checkpoint_timeout=15min", "max_connections=100", "autovacuum=on",
    "listen_addresses=127.0.0.1", "logging_collector=off",
)  # fmt: skip
DATABASE = "wallet"
_TPS = re.compile(r"^tps = ([\d.]+)", re.MULTILINE)
_FAILED = re.compile(r"^number of failed transactions: (\d+)", re.MULTILINE)
_PREFILL_BATCH = 10_000
_A_FEW_CALLS = 3


class PostgresError(Exception):
    """It could not be had, or did not do what it was asked; the message says what it said."""


def find() -> Path | None:
    """Return the folder of the newest server's programs, or None."""
    on_path = shutil.which("initdb")
    found = [] if on_path is None else [Path(on_path).resolve()]
    found += sorted(DEBIAN.glob("*/bin/initdb"), key=lambda path: -float(path.parts[-3]))
    folders = (path.parent for path in found)
    return next((each for each in folders if all((each / p).exists() for p in PROGRAMS)), None)


class Postgres:
    """A running server.

    Attributes:
        port: on loopback.
        folder: where its data is.
    """

    def __init__(self, programs: Path, folder: Path, port: int, user: str | None) -> None:
        self._programs = programs
        self._user = user
        self.port = port
        self.folder = folder

    @property
    def pid(self) -> int:
        """The postmaster's process id."""
        return int((self.folder / "postmaster.pid").read_text(encoding="ascii").split()[0])

    def run(self, program: str, *arguments: str) -> str:
        """Run one of its programs and return what it printed.

        Raises:
            PostgresError: it failed.
        """
        made = subprocess.run(
            [str(self._programs / program), *arguments],
            user=self._user, capture_output=True, text=True, check=False,
            timeout=COMMAND_TIMEOUT_S, cwd=self.folder.parent, start_new_session=True,
        )  # fmt: skip
        if made.returncode != 0:
            raise PostgresError(f"{program}: {made.stderr.strip()[-500:]}")
        return made.stdout

    def sql(self, text: str) -> str:
        """Run SQL and return its rows, bare."""
        return self.run(
            "psql", *self._where(), "-X", "-A", "-t", "-v", "ON_ERROR_STOP=1", "-c", text, DATABASE
        ).strip()

    def create(self, accounts: int) -> None:
        """Make the database with its accounts."""
        self.run("createdb", *self._where(), DATABASE)
        schema = HERE / "postgres_schema.sql"
        self.run(
            "psql", *self._where(), "-X", "-q", "-v", "ON_ERROR_STOP=1",
            "-c", schema.read_text(encoding="utf-8"), DATABASE,
        )  # fmt: skip
        self.sql(f"SELECT open_accounts({accounts})")

    def prefill(self, transfers: int, accounts: int) -> Iterator[int]:
        """Make transfers in large arrays, then settle down; yields how many, as they are made."""
        for done in range(0, transfers, _PREFILL_BATCH):
            size = min(_PREFILL_BATCH, transfers - done)
            self.sql(f"SELECT transfer_random_array({size}, {accounts})")
            yield size
        self.sql("VACUUM ANALYZE")
        self.sql("CHECKPOINT")

    def bench(
        self, script: str, clients: int, seconds: float, seed: int, **variables: int
    ) -> float:
        """Run pgbench with prepared statements and return how many a second it made.

        Raises:
            PostgresError: a statement failed.
        """
        printed = self.run(
            "pgbench", *self._where(), "-n", "-M", "prepared", "-f", str(HERE / f"{script}.sql"),
            "-c", str(clients), "-j", "1", f"--random-seed={seed}",
            *(("-T", str(round(seconds))) if seconds >= 1 else ("-t", str(_A_FEW_CALLS))),
            *(part for name, value in variables.items() for part in ("-D", f"{name}={value}")),
            DATABASE,
        )  # fmt: skip
        rate, failed = _TPS.search(printed), _FAILED.search(printed)
        if rate is None or (failed is not None and failed[1] != "0"):
            raise PostgresError(f"pgbench said: {printed}")
        return float(rate[1])

    def check(self) -> None:
        """See that the books are right.

        Raises:
            PostgresError: they are not.
        """
        books = self.sql("SELECT * FROM books")
        if set(books.split("|")) != {"t"}:
            raise PostgresError(f"the books are wrong: {books}")

    def _where(self) -> tuple[str, ...]:
        return ("-h", "127.0.0.1", "-p", str(self.port), "-U", "wallet")


@contextmanager
def running(programs: Path) -> Iterator[Postgres]:
    """Run a fresh server for as long as the context lasts."""
    user = _unprivileged_user()
    with tempfile.TemporaryDirectory(prefix="doubloon-bench-pg-") as temporary:
        home = Path(temporary)
        folder = home / "data"
        if user is not None:
            entry = pwd.getpwnam(user)
            os.chown(home, entry.pw_uid, entry.pw_gid)
        server = Postgres(programs, folder, _free_port(), user)
        server.run("initdb", "-D", str(folder), "-U", "wallet", "-A", "trust", "-N", "-E", "UTF8")
        settings = (*SETTINGS, f"port={server.port}", f"unix_socket_directories={home}")
        options = " ".join(f"-c {each}" for each in settings)
        log = str(home / "log")
        server.run(
            "pg_ctl", "-D", str(folder), "-l", log, "-w", "-t", str(START_TIMEOUT_S),
            "-o", options, "start",
        )  # fmt: skip
        try:
            yield server
        finally:
            server.run("pg_ctl", "-D", str(folder), "-m", "immediate", "-w", "stop")


def _unprivileged_user() -> str | None:
    """Return whom to run as: None = as we are."""
    if os.geteuid() != 0:
        return None
    for name in UNPRIVILEGED:
        try:
            pwd.getpwnam(name)
        except KeyError:
            continue
        return name
    raise PostgresError("no unprivileged user to run PostgreSQL as")


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
