"""Finding an etcd server, and running one: its ports, its data, and what it cannot do."""

import stat
import sys
from pathlib import Path

import pytest

from cluster.etcd import Etcd
from scripts import etcd_server
from scripts.etcd_server import (
    BINARY_VARIABLE,
    EtcdEnded,
    EtcdProcess,
    EtcdServerError,
    find_etcd,
    start_etcd,
)
from tests.support.etcd import FAST, restart, running_etcd


def script(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return path


@pytest.fixture
def nothing_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A machine whose etcd servers are only those that the test puts there."""
    monkeypatch.delenv(BINARY_VARIABLE, raising=False)
    monkeypatch.setattr(sys, "prefix", str(tmp_path / "venv"))
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}:{tmp_path / 'bin'}")
    monkeypatch.setattr(etcd_server, "find_spec", lambda _name: None)
    return tmp_path


@pytest.mark.parametrize(
    ("version", "play_only"),
    [
        ("3.4.23", False),
        ("3.5.0", True),
        ("3.5.1", True),
        ("3.5.2", True),
        ("3.5.3", False),
        ("3.6.0", False),
    ],
)
def test_releases_that_can_lose_data_are_for_play_only(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, version: str, *, play_only: bool
) -> None:
    path = script(tmp_path / "etcd", f"echo 'etcd Version: {version}'")
    monkeypatch.setenv(BINARY_VARIABLE, str(path))
    found = find_etcd()
    assert (found.path, found.version, found.play_only) == (path, version, play_only)


def test_the_one_fetched_comes_before_the_one_on_path(nothing_named: Path) -> None:
    with pytest.raises(EtcdServerError, match="no etcd server found"):
        find_etcd()
    on_path = script(nothing_named / "bin" / "etcd", "echo 'etcd Version: 3.5.9'")
    assert find_etcd().path == on_path
    fetched = nothing_named / "venv" / "etcd" / "usr" / "bin" / "etcd"
    script(fetched, "echo 'etcd Version: 3.4.23'")
    assert find_etcd().path == fetched


@pytest.mark.parametrize(
    ("text", "complaint"), [("exit 3", "does not run"), ("echo hello", "is not etcd")]
)
def test_a_named_binary_that_is_no_etcd_is_an_error_and_nothing_else_is_tried(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, text: str, complaint: str
) -> None:
    monkeypatch.setenv(BINARY_VARIABLE, str(script(tmp_path / "etcd", text)))
    with pytest.raises(EtcdServerError, match=complaint):
        find_etcd()


async def test_data_and_ports_stay_over_a_restart(tmp_path: Path) -> None:
    with running_etcd(tmp_path) as server:
        before = server.client
        async with Etcd([server.client]) as etcd:
            await etcd.put("/a", b"1")
            server.stop()
            assert server.pid == 0
            await restart(server)
            assert server.client == before
            assert await etcd.get("/a")
    with start_etcd(tmp_path / "etcd", options=FAST) as again:  # other ports, the same data
        async with Etcd([again.client]) as etcd:
            assert await etcd.get("/a")


def test_a_server_that_ends_at_once_is_said_to_have(tmp_path: Path) -> None:
    server = EtcdProcess(find_etcd(), tmp_path / "etcd", options=["--no-such-option"])
    with pytest.raises(EtcdEnded, match=str(server.log_file)):
        server.start()
    assert server.pid == 0
