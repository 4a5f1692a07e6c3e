"""A short history of real processes under faults; `python -m tests.history` makes long ones."""

import json
import subprocess
import sys

import pytest

from tests.history.faults import CLOCK, COURSES, NETWORK, Faults
from tests.history.mutants import MUTANTS
from tests.support import ROOT

SECONDS = 4
LASTS_S = 110.0  # at most, on a busy machine; alone a fifth of it

pytestmark = pytest.mark.slow


@pytest.mark.timeout(2 * LASTS_S)
def test_a_short_history_breaks_no_promise(seed: int) -> None:
    """With whatever faults this machine allows; which it does not, the command says."""
    command = (
        *(sys.executable, "-m", "tests.history", "--json", "--quick"),
        *("--seed", str(seed), "--minutes", str(SECONDS / 60)),
    )
    done = subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, timeout=LASTS_S, check=False
    )
    sys.stderr.write(done.stderr)  # which also says what this machine does not allow
    assert done.returncode == 0
    told = json.loads(done.stdout)
    assert told["rounds"] == 1
    assert told["records"] > 0
    assert told["faults"]


def test_every_course_of_a_fault_can_be_asked_for() -> None:
    courses = {course for _, course in COURSES.values()}
    own = {Faults.strike_until, Faults.strike}
    public = {f for name, f in vars(Faults).items() if callable(f) and not name.startswith("_")}
    assert courses == public - own
    assert COURSES.keys() >= NETWORK | CLOCK


def test_every_mutant_meets_faults_that_are_possible_everywhere() -> None:
    for mutant in MUTANTS.values():
        assert set(mutant.kinds) <= COURSES.keys() - NETWORK - CLOCK
