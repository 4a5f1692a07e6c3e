"""The checked-in stubs are what the protos of this checkout generate, and nothing else."""

import shutil
from pathlib import Path

import pytest

from scripts import generate_stubs


def test_checked_in_stubs_are_fresh() -> None:
    assert generate_stubs.differences() == []


@pytest.fixture
def copy(tmp_path: Path) -> tuple[Path, Path]:
    protos, stubs = tmp_path / "proto", tmp_path / "stubs"
    shutil.copytree(generate_stubs.PROTO_ROOT, protos)
    stubs.mkdir()
    generate_stubs.replace(protos, stubs)
    return protos, stubs


def test_staleness_is_seen_and_mended(copy: tuple[Path, Path]) -> None:
    protos, stubs = copy
    with (protos / "doubloon/v1/types.proto").open("a") as proto:
        proto.write("\nmessage AddedByATest {}\n")
    (stubs / "wallet_service_pb2.py").unlink()
    (stubs / "gone_pb2.py").touch()
    assert generate_stubs.differences(protos, stubs) == [
        "missing: wallet_service_pb2.py",
        "left over: gone_pb2.py",
        "differs: types_pb2.py",
        "differs: types_pb2.pyi",
    ]
    generate_stubs.replace(protos, stubs)
    assert generate_stubs.differences(protos, stubs) == []


def test_a_broken_proto_costs_no_stub(copy: tuple[Path, Path]) -> None:
    protos, stubs = copy
    before = {path: path.read_bytes() for path in stubs.iterdir()}
    with (protos / "doubloon/v1/types.proto").open("a") as proto:
        proto.write("\nmessage {\n")
    with pytest.raises(generate_stubs.GenerationError, match=r"types\.proto"):
        generate_stubs.replace(protos, stubs)
    assert {path: path.read_bytes() for path in stubs.iterdir()} == before
