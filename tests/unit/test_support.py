"""The tests' own helpers: what they promise to every other test."""

import asyncio
import os
import random
import signal
import socket
import subprocess
from pathlib import Path

import pytest

from tests import support


def test_a_process_is_found_after_its_parent_is_gone() -> None:
    run = os.environ[support.RUN_VARIABLE]
    started = subprocess.run(
        ["sh", "-c", "sleep 600 >/dev/null 2>&1 & echo $!"],
        capture_output=True,
        check=True,
        text=True,
    )
    orphan = int(started.stdout)
    try:
        # Not at once: while it turns from a shell into `sleep`, it has no environment to be read.
        found = support.eventually(lambda: orphan in support.processes_of_run(run), "the orphan")
        asyncio.run(found)
        assert orphan not in support.processes_of_run(f"not-{run}")
    finally:
        os.kill(orphan, signal.SIGKILL)
        # Nobody here can wait for it: it is not our child, and a signal is no death yet.
        gone = support.eventually(lambda: orphan not in support.processes_of_run(run), "its end")
        asyncio.run(gone)


async def test_eventually_returns_once_it_holds() -> None:
    answers = iter([False, False, True])
    await support.eventually(lambda: next(answers), "the third answer")
    assert list(answers) == []


async def test_eventually_names_what_did_not_come() -> None:
    with pytest.raises(AssertionError, match="the tide"):
        await support.eventually(lambda: False, "the tide", timeout_s=0)


def test_a_free_port_can_be_listened_on() -> None:
    with socket.create_server(("127.0.0.1", support.free_port())) as server:
        assert server.getsockname()[1] > 0


def test_a_seed_given_is_the_seed_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(support.SEED_VARIABLE, "7")
    assert support.seed_of_run() == 7


def test_every_test_starts_the_same_randomness(seed: int, rng: random.Random) -> None:
    assert rng.random() == random.Random(seed).random()


def test_shared_data_is_where_it_is_said_to_be(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv(support.DATA_VARIABLE, str(tmp_path))
    assert support.shared_data() == tmp_path
    monkeypatch.setenv(support.DATA_VARIABLE, str(tmp_path / "absent"))
    assert support.shared_data() is None
