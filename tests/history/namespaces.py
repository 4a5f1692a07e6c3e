"""A network namespace for each process, on one bridge, so that the network between them can fail.

All of it lives in namespaces that belong to the rig: the rig itself runs in one (the hub, where the
bridge is, etcd and the clients), and each process in one of its own, held open by a `cat` that ends
with us. Nothing has a name outside and nothing is left behind. Needs root, and iproute2, util-linux
and nftables.
"""

import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

HUB: Final = "10.77.0.1"
TOOLS: Final = ("ip", "nft", "nsenter", "unshare")
INSIDE: Final = ("unshare", "--net")
"""What to put before a command to run it in a hub of its own."""

Process = tuple[str, int]

_TABLE: Final = """
table inet faults {
    chain arriving { type filter hook input priority 0; }
    chain leaving { type filter hook output priority 0; }
}
"""


def missing() -> str:
    """Say why networks cannot fail here; "" = they can."""
    if os.geteuid() != 0:
        return "network namespaces need root"
    if absent := [tool for tool in TOOLS if shutil.which(tool) is None]:
        return f"no {' and no '.join(absent)} (Debian's iproute2, nftables and util-linux)"
    made = "ip link add one type veth peer name two && ip link add hub type bridge && nft -f -"
    probe = subprocess.run(
        [*INSIDE, "sh", "-c", made], input=_TABLE, text=True, capture_output=True, check=False
    )
    return f"namespaces lack something: {probe.stderr.strip()[:100]}" if probe.returncode else ""


class Namespaces:
    """The network of one cluster; made inside a hub of its own (`INSIDE`)."""

    def __init__(self) -> None:
        self._holders: dict[Process, subprocess.Popen[bytes]] = {}
        _run("ip", "link", "set", "lo", "up")
        _run("ip", "link", "add", "hub", "type", "bridge")
        _run("ip", "addr", "add", f"{HUB}/24", "dev", "hub")
        _run("ip", "link", "set", "hub", "up")

    def add(self, process: Process) -> None:
        """Makes a process's namespace."""
        holder = subprocess.Popen(
            [*INSIDE, "cat"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, start_new_session=True
        )
        self._holders[process] = holder
        assert holder.stdin
        assert holder.stdout
        holder.stdin.write(b"\n")
        holder.stdin.flush()
        assert holder.stdout.read(1) == b"\n", "it runs, so its namespace is there"
        outer = self._link(process)
        _run("ip", "link", "add", outer, "type", "veth",
             "peer", "name", "eth0", "netns", str(holder.pid))  # fmt: skip
        _run("ip", "link", "set", outer, "master", "hub", "up")
        self._within(process, "ip", "link", "set", "lo", "up")
        self._within(process, "ip", "addr", "add", f"{self.host(process)}/24", "dev", "eth0")
        self._within(process, "ip", "link", "set", "eth0", "up")
        self._within(process, "nft", "-f", "-", stdin=_TABLE)

    def host(self, process: Process) -> str:
        """Return a process's address."""
        place = list(self._holders).index(process)
        return f"10.77.0.{11 + place}"

    def prefix(self, process: Process) -> tuple[str, ...]:
        """Return what to put before a process's command."""
        return ("nsenter", f"--net=/proc/{self._holders[process].pid}/ns/net", "--")

    @contextmanager
    def rules(self, process: Process, *rules: str) -> Iterator[None]:
        """Let rules hold at a process for as long as the context lasts.

        Each begins with `arriving` or `leaving`, as in `leaving ip daddr 10.77.0.1 drop`.
        """
        for rule in rules:
            self._within(process, "nft", "add", "rule", "inet", "faults", *rule.split())
        try:
            yield
        finally:
            for chain in ("arriving", "leaving"):
                self._within(process, "nft", "flush", "chain", "inet", "faults", chain)

    def close(self) -> None:
        """Ends the namespaces, and the bridge."""
        for holder in self._holders.values():
            holder.kill()
            holder.wait()
            for pipe in (holder.stdin, holder.stdout):
                if pipe:
                    pipe.close()
        _run("ip", "link", "del", "hub")

    def _link(self, process: Process) -> str:
        return f"{process[0][:5]}{process[1]}"

    def _within(self, process: Process, *command: str, stdin: str | None = None) -> None:
        _run(*self.prefix(process), *command, stdin=stdin)


def _run(*command: str, stdin: str | None = None) -> None:
    done = subprocess.run(command, input=stdin, text=True, capture_output=True, check=False)
    assert done.returncode == 0, (command, done.stderr)
