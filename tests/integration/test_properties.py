"""One round of the property tests on compiled cores, where a number may be a machine word."""

import subprocess
import sys

import pytest

from scripts import compiled
from tests.support import ROOT

TIMEOUT_S = 300


def test_one_round_holds_on_compiled_cores(seed: int) -> None:
    if not compiled.is_current():
        pytest.skip("the cores are not compiled, or not from today's sources")
    command = [sys.executable, "-m", "tests.properties", "--rounds", "1", "--jobs", "1"]
    done = subprocess.run(
        [*command, "--seed", str(seed)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "on compiled cores" in done.stdout
