"""What is compiled does no I/O, and a copy is used only while it is made of today's sources."""

from pathlib import Path

import pytest

from scripts import compiled
from tests.unit.test_layering import PURE_CORES

# Not pure, but each does something for every transaction, and nothing but through a seam.
DRIVERS = {
    "coordinator.lanes",
    "coordinator.rounds",
    "coordinator.routes",
    "shard_node.unpacking",
}


def test_only_cores_and_what_drives_them_are_compiled() -> None:
    names = {path.removesuffix(".py").replace("/", ".") for path in compiled.MODULES}
    assert names <= PURE_CORES | DRIVERS


def test_processes_run_a_current_copy_and_no_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(compiled, "folder", lambda: tmp_path)
    monkeypatch.delenv(compiled.INTERPRETED, raising=False)
    monkeypatch.delenv("PYTHONPATH", raising=False)
    assert "PYTHONPATH" not in compiled.environment(), "there is none"
    (tmp_path / "STAMP").write_text("of other sources")
    assert "PYTHONPATH" not in compiled.environment()
    (tmp_path / "STAMP").write_text(compiled.digest())
    assert compiled.environment()["PYTHONPATH"] == str(tmp_path)
    monkeypatch.setenv(compiled.INTERPRETED, "1")
    assert "PYTHONPATH" not in compiled.environment()


def test_every_source_is_in_the_digest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = tmp_path / "cluster" / "one.py"
    source.parent.mkdir()
    source.write_text("ONE = 1\n")
    monkeypatch.setattr(compiled, "ROOT", tmp_path)
    before = compiled.digest()
    source.write_text("ONE = 2\n")
    assert compiled.digest() != before
