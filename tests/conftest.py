"""What every test gets: one replayable seed a run, the shared data, and no process left behind."""

import os
import random
import signal
from collections.abc import Generator, Iterator
from pathlib import Path

import hypothesis
import pytest

from tests import support

SEED: pytest.StashKey[int] = pytest.StashKey()
RUN: pytest.StashKey[str] = pytest.StashKey()

# Python's own helper of the spawn start method: it lives as long as the process that uses it.
LIVES_WITH_US = "multiprocessing.resource_tracker"


def pytest_configure(config: pytest.Config) -> None:
    config.stash[SEED] = support.seed_of_run()
    config.stash[RUN] = f"{os.getpid()}-{config.stash[SEED]}"
    os.environ[support.RUN_VARIABLE] = config.stash[RUN]
    os.environ[support.SEED_VARIABLE] = str(config.stash[SEED])  # workers inherit it
    # No deadline: it would judge by the wall clock of a busy machine.
    hypothesis.settings.register_profile("doubloon", deadline=None, print_blob=True)
    hypothesis.settings.load_profile("doubloon")


def pytest_report_header(config: pytest.Config) -> str:
    return f"random tests: {support.SEED_VARIABLE}={config.stash[SEED]}"


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    if report.failed and {"seed", "rng"} & set(getattr(item, "fixturenames", ())):
        replay = f"{support.SEED_VARIABLE}={item.config.stash[SEED]} replays this test"
        report.sections.append(("seed", replay))
    return report


@pytest.fixture
def seed(pytestconfig: pytest.Config) -> int:
    """The run's seed, for a test that hands it on; a failure prints how to replay it."""
    return pytestconfig.stash[SEED]


@pytest.fixture
def rng(seed: int) -> random.Random:
    """Randomness that starts anew in each test, so that one test alone replays the same."""
    return random.Random(seed)


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real data that lies beside the checkout."""
    folder = support.shared_data()
    if folder is None:
        pytest.skip(f"no ../shared/data beside the checkout, and {support.DATA_VARIABLE} unset")
    return folder


@pytest.fixture(scope="session", autouse=True)
def _no_process_left_by_the_run(pytestconfig: pytest.Config) -> Iterator[None]:
    yield
    _end_and_report(pytestconfig.stash[RUN], known=set())


@pytest.fixture(autouse=True)
def _no_process_left_behind(
    _no_process_left_by_the_run: None, pytestconfig: pytest.Config
) -> Iterator[None]:
    """What a test starts it also ends; wider fixtures may keep theirs until their own end."""
    run = pytestconfig.stash[RUN]
    known = set(support.processes_of_run(run))
    yield
    _end_and_report(run, known)


def _end_and_report(run: str, known: set[int]) -> None:
    left = {
        pid: command
        for pid, command in support.processes_of_run(run).items()
        if pid not in known and LIVES_WITH_US not in command
    }
    for pid in left:
        try:
            os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:
            continue  # it was ending by itself, late
    assert not left, f"processes left behind (ended now): {left}"
