"""Generates the Python stubs of `proto/` into `client/doubloon/v1`, or proves them fresh.

The stubs are checked in, so that a game server's `pip install ./client` needs no compiler.
They are made by the oldest compiler that the project supports (pinned in `pyproject.toml`):
generated code refuses a runtime older than its compiler and accepts every newer one.

protoc derives both the output folder and the import statements from a file's path below its
include root, so `proto/doubloon/v1/types.proto` becomes `doubloon/v1/types_pb2.py` and is
imported as `doubloon.v1.types_pb2`, wherever the package is installed.
"""

import shutil
import subprocess
import sys
import sysconfig
import tempfile
from pathlib import Path

import click

ROOT = Path(__file__).resolve().parent.parent
PROTO_ROOT = ROOT / "proto"
PACKAGE = Path("doubloon") / "v1"
STUBS = ROOT / "client" / PACKAGE
GENERATED_PATTERN = "*_pb2*.py*"  # `__init__.py` beside them is written by hand
PROTOC_TIMEOUT_S = 120  # takes two seconds; a hung plugin should not hang a build


class GenerationError(Exception):
    """The compiler refused the protos; its own message is the text."""


def generate(proto_root: Path, out: Path) -> None:
    """Compile every proto of the package below `proto_root` into `out`/doubloon/v1.

    Messages and their types come from every file, client and servicer classes only from
    `*_service.proto`. The types cover `grpc` and `grpc.aio` channels alike.

    Raises:
        GenerationError: there is no proto, or the compiler refused one.
    """
    protos = sorted((proto_root / PACKAGE).glob("*.proto"))
    services = [proto for proto in protos if proto.stem.endswith("_service")]
    if not services:
        msg = f"no *_service.proto in {proto_root / PACKAGE}"
        raise GenerationError(msg)
    _protoc(proto_root, ["--python_out", "--mypy_out"], out, protos)
    _protoc(proto_root, ["--grpc_python_out", "--mypy_grpc_out"], out, services)


def differences(proto_root: Path = PROTO_ROOT, stubs: Path = STUBS) -> list[str]:
    """Say what regenerating would change, one line a file; empty when the stubs are fresh."""
    with tempfile.TemporaryDirectory(prefix="doubloon-stubs-") as scratch:
        generate(proto_root, Path(scratch))
        fresh = _read(Path(scratch) / PACKAGE)
    present = _read(stubs)
    return [
        *(f"missing: {name}" for name in sorted(fresh.keys() - present.keys())),
        *(f"left over: {name}" for name in sorted(present.keys() - fresh.keys())),
        *(
            f"differs: {name}"
            for name in sorted(fresh.keys() & present.keys())
            if fresh[name] != present[name]
        ),
    ]


def replace(proto_root: Path = PROTO_ROOT, stubs: Path = STUBS) -> int:
    """Put fresh stubs in place of all generated ones; returns how many files there are."""
    with tempfile.TemporaryDirectory(prefix="doubloon-stubs-") as scratch:
        # Generate everything first: a proto that does not compile must not cost the old stubs.
        generate(proto_root, Path(scratch))
        for old in stubs.glob(GENERATED_PATTERN):
            old.unlink()
        fresh = sorted((Path(scratch) / PACKAGE).iterdir())
        for new in fresh:
            shutil.copyfile(new, stubs / new.name)
    return len(fresh)


def _protoc(proto_root: Path, outputs: list[str], out: Path, protos: list[Path]) -> None:
    # The plugins live beside this interpreter, and need not be on PATH.
    bin_dir = Path(sysconfig.get_path("scripts"))
    plugins = [
        f"--plugin={name}={bin_dir / name}" for name in ("protoc-gen-mypy", "protoc-gen-mypy_grpc")
    ]
    done = subprocess.run(
        [
            *(sys.executable, "-m", "grpc_tools.protoc", f"--proto_path={proto_root}"),
            *plugins,
            *(f"{output}={out}" for output in outputs),
            *(str(proto.relative_to(proto_root)) for proto in protos),
        ],
        capture_output=True,
        check=False,
        text=True,
        timeout=PROTOC_TIMEOUT_S,
    )
    if done.returncode != 0:
        raise GenerationError(done.stderr.strip() or f"protoc ended with {done.returncode}")


def _read(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.glob(GENERATED_PATTERN)}


@click.command(help="Generate the Python stubs of proto/ into client/doubloon/v1.")
@click.option("--check", is_flag=True, help="Change nothing; fail when the stubs are not fresh.")
def main(*, check: bool) -> None:
    """Run the command line."""
    try:
        if not check:
            click.echo(f"{replace()} files in {STUBS.relative_to(ROOT)}")
            return
        stale = differences()
    except GenerationError as error:
        raise click.ClickException(str(error)) from error
    if stale:
        raise click.ClickException("stubs are not fresh; run `make stubs`\n" + "\n".join(stale))
    click.echo("stubs are fresh")


if __name__ == "__main__":
    main()
