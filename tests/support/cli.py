"""The operators' command as operators run it: a process, its output, its exit code."""

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.support import ROOT

NOTHING_IN_DOUBT: dict[str, list[object]] = {"transactions": [], "unreachable_shard_ids": []}
"""What `txn list --json` says when all is settled."""

TIMEOUT_S = 60.0  # starting a cluster on a busy machine is the longest of them


@dataclass(frozen=True)
class Answer:
    """What a command said and how it ended."""

    code: int
    output: str
    errors: str

    @property
    def value(self) -> Any:
        """The output, which must be one JSON value."""
        return json.loads(self.output)


@dataclass(frozen=True)
class Cli:
    """`python -m scripts.doubloon`, for the clusters under one folder."""

    var: Path
    cluster: str

    def start(self, *args: str, module: str = "scripts.doubloon") -> subprocess.Popen[str]:
        """Start a command and leave it running; whoever starts it ends it."""
        own = {"DOUBLOON_VAR": str(self.var), "DOUBLOON_CLUSTER": self.cluster}
        return subprocess.Popen(
            [sys.executable, "-m", module, *args],
            cwd=ROOT,
            env={**os.environ, **own, "DOUBLOON_ROUTER": ""},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def run(self, *args: str, module: str = "scripts.doubloon") -> Answer:
        """Run a command to its end."""
        return finish(self.start(*args, module=module))

    def ask(self, *args: str, code: int = 0) -> Any:
        """Run a command with `--json`, check its exit code and return its answer."""
        answer = self.run(*args, "--json")
        assert answer.code == code, answer
        return answer.value


def finish(process: subprocess.Popen[str]) -> Answer:
    """Wait for a command's end; one that does not end in time is killed and fails."""
    try:
        output, errors = process.communicate(timeout=TIMEOUT_S)
    finally:
        process.kill()
        process.wait()
    return Answer(process.returncode, output, errors)
