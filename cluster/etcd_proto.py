"""etcd's messages and stubs, taken out of the `etcd3` package without importing it.

`import etcd3` fails beside today's protobuf: its generated modules build descriptors by calls that
protobuf has removed. But the same modules hold the serialized descriptors of etcd's API, and the
module of stubs is plain Python over a channel. So this reads the installed files as text, adds the
serialized descriptors to a pool of their own (their names, `rpc.proto` and `kv.proto`, are too
common for the process-wide pool), makes message classes of them, and runs the stubs' code with
those messages in place of the import. What results is upb messages at full speed, needs no
environment variable, and touches neither `sys.modules` nor the default pool.
"""

import ast
import re
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from google.protobuf import descriptor_pool, message_factory

# In the order of their imports.
_FILES = ("kv", "auth", "rpc")
_SERIALIZED = re.compile(r"^  serialized_pb=_b\((.*)\)$", re.MULTILINE)


class EtcdPackageError(ImportError):
    """The `etcd3` package is missing or is not the release whose files this module reads."""


@dataclass(frozen=True)
class EtcdApi:
    """etcd's API.

    Attributes:
        rpc: messages of `etcdserverpb` by name: `rpc.RangeRequest`, `rpc.Compare` …
        stubs: stub classes by name, each made with a channel: `stubs.KVStub`, `stubs.LeaseStub` …
    """

    rpc: Any
    stubs: Any


@cache  # the pool and its classes are made once per process, on first use
def load() -> EtcdApi:
    """Read the installed `etcd3` package.

    Raises:
        EtcdPackageError: see there.
    """
    spec = find_spec("etcd3")  # finds the folder without running what is in it
    if spec is None or not spec.submodule_search_locations:
        raise EtcdPackageError("the package etcd3 is not installed")
    folder = Path(spec.submodule_search_locations[0]) / "etcdrpc"
    rpc = _messages(folder)
    return EtcdApi(rpc, _stubs(folder / "rpc_pb2_grpc.py", rpc))


def _messages(folder: Path) -> Any:
    pool = descriptor_pool.DescriptorPool()
    for name in _FILES:
        found = _SERIALIZED.findall((folder / f"{name}_pb2.py").read_text(encoding="utf-8"))
        if len(found) != 1:
            raise EtcdPackageError(f"etcd3's {name}_pb2.py holds no serialized descriptor")
        # The generator wrote bytes as a Latin-1 string literal.
        pool.AddSerializedFile(ast.literal_eval(found[0]).encode("latin-1"))
    descriptor = pool.FindFileByName("rpc.proto")
    return SimpleNamespace(
        **{
            name: message_factory.GetMessageClass(message)
            for name, message in descriptor.message_types_by_name.items()
        }
    )


def _stubs(file: Path, rpc: Any) -> Any:
    tree = ast.parse(file.read_text(encoding="utf-8"), str(file))
    imports = [
        node
        for node in tree.body
        if isinstance(node, ast.ImportFrom) and node.module == "etcd3.etcdrpc"
    ]
    if [alias.asname for node in imports for alias in node.names] != ["rpc__pb2"]:
        raise EtcdPackageError("etcd3's rpc_pb2_grpc.py imports something else than rpc_pb2")
    tree.body.remove(imports[0])
    names: dict[str, Any] = {"__name__": "etcd3.etcdrpc.rpc_pb2_grpc", "rpc__pb2": rpc}
    exec(compile(tree, str(file), "exec"), names)  # noqa: S102 - an installed, pinned package's own module
    return SimpleNamespace(**{name: value for name, value in names.items() if "Stub" in name})
