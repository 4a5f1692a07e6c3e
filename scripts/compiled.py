"""Compiles the pure cores with mypyc, into a folder of this virtual environment; part of set-up.

The Python source stays what is read, changed and tested; mypyc makes extension modules of the same
files, three to four times as fast. They lie in a *copy* of the rooms, never beside the sources, so
that an edited file is never shadowed by an older compiled one: the copy bears a digest of all it
was made from, and who starts a process gets the copy only while that digest is today's. Where no C
compiler is found, processes run the sources: the same behaviour, at a third of the speed.

    .venv/bin/python -m scripts.compiled
"""

import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).resolve().parent.parent

ROOMS: Final = ("cluster", "shard_node", "router", "coordinator")

MODULES: Final = (
    "cluster/packed.py",
    "cluster/refusals.py",
    "coordinator/actions.py",
    "coordinator/counters.py",
    "coordinator/lanes.py",
    "coordinator/rounds.py",
    "coordinator/routes.py",
    "coordinator/transactions.py",
    "coordinator/states.py",
    "coordinator/two_phase.py",
    "coordinator/window.py",
    "shard_node/account_table.py",
    "shard_node/batch.py",
    "shard_node/books.py",
    "shard_node/clearing.py",
    "shard_node/ended.py",
    "shard_node/groups.py",
    "shard_node/hours.py",
    "shard_node/key_table.py",
    "shard_node/ledger.py",
    "shard_node/legs.py",
    "shard_node/memory.py",
    "shard_node/open_block.py",
    "shard_node/participant.py",
    "shard_node/posting.py",
    "shard_node/recorded.py",
    "shard_node/records.py",
    "shard_node/replaying.py",
    "shard_node/rows.py",
    "shard_node/transactions.py",
    "shard_node/unpacking.py",
)
"""What is compiled: modules that decide, where the time goes. What does I/O gains nothing."""

INTERPRETED: Final = "DOUBLOON_INTERPRETED"
"""When this is set in the environment, the processes started here run the sources."""

BUILD_TIMEOUT_S: Final = 900.0  # a minute of one core; a busy machine may take its time
_STAMP: Final = "STAMP"

# To optimise more than this takes twice as long, and the ledger is no faster.
_SETUP: Final = """
from mypyc.build import mypycify
from setuptools import setup

options = ["--strict", "--explicit-package-bases", "--namespace-packages"]
modules = mypycify([*options, *{modules!r}], opt_level="1", debug_level="0")
setup(name="doubloon-compiled", packages=[], ext_modules=modules)
"""


def main() -> int:
    """Run the command line; returns the exit code."""
    if sys.prefix == sys.base_prefix:
        print("run this with the virtual environment's Python", file=sys.stderr)
        return 1
    if is_current():
        print(f"compiled cores: up to date in {folder()}")
        return 0
    print("compiling the cores (about a minute, whenever one of them has changed)", flush=True)
    if (problem := build()) is None:
        print(f"compiled cores: {len(MODULES)} modules in {folder()}")
    else:
        print(f"cores not compiled, so processes run slower: {problem}", file=sys.stderr)
    return 0


def environment() -> Mapping[str, str]:
    """The environment in which to start a process of a role: with the compiled cores, if any."""
    if os.environ.get(INTERPRETED) or not is_current():
        return dict(os.environ)
    # The current folder, which `python -m` would look into first, is the sources'.
    return {**os.environ, "PYTHONPATH": str(folder()), "PYTHONSAFEPATH": "1"}


def folder() -> Path:
    """Where the copy is."""
    return Path(sys.prefix) / "compiled"


def is_current() -> bool:
    """Whether there is a copy, made from today's sources."""
    stamp = folder() / _STAMP
    return stamp.exists() and stamp.read_text() == digest()


def digest() -> str:
    """Names everything that the copy is made from."""
    hashed = hashlib.blake2b(digest_size=16)
    for part in (sys.version, version("mypy"), _SETUP, repr(MODULES)):
        hashed.update(part.encode())
    for path in _sources():
        hashed.update(str(path.relative_to(ROOT)).encode() + b"\0" + path.read_bytes() + b"\0")
    return hashed.hexdigest()


def build() -> str | None:
    """Makes the copy anew; returns what stood in the way, if anything."""
    named = digest()
    with tempfile.TemporaryDirectory(prefix="compiled-", dir=sys.prefix) as scratch_name:
        scratch = Path(scratch_name)
        for path in _sources():
            copy = scratch / path.relative_to(ROOT)
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, copy)
        (scratch / "setup.py").write_text(_SETUP.format(modules=list(MODULES)))
        try:
            done = subprocess.run(
                [sys.executable, "setup.py", "--quiet", "build_ext", "--inplace"],
                cwd=scratch,
                env={**os.environ, "MYPYPATH": str(ROOT / "client")},
                capture_output=True,
                text=True,
                timeout=BUILD_TIMEOUT_S,
                check=False,
            )
        except (OSError, subprocess.TimeoutExpired) as error:
            return str(error)
        if done.returncode != 0:
            return (done.stderr.strip() or done.stdout.strip()).rpartition("\n")[2]
        for leftover in ("build", ".mypy_cache"):
            shutil.rmtree(scratch / leftover, ignore_errors=True)
        (scratch / "setup.py").unlink()
        (scratch / _STAMP).write_text(named)
        shutil.rmtree(folder(), ignore_errors=True)
        shutil.copytree(scratch, folder())
    return None


def _sources() -> list[Path]:
    return sorted(path for room in ROOMS for path in (ROOT / room).rglob("*.py"))


if __name__ == "__main__":
    sys.exit(main())
