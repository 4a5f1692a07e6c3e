"""Rooms import inwards, pure cores stay pure, and importing a module does nothing but define.

The rules are tables. A new room, or a new pure core, gets its line here.
"""

import ast
import importlib.metadata
import sys
from collections.abc import Iterator

import pytest

from tests.support import ROOT, assert_none
from tests.support.source import Module, modules

# What of ours each room may import beside itself. Nothing imports scripts or tests.
ROOMS = {
    # Both ends of a call stream's wire are made for each other.
    "cluster": {"doubloon.v1", "doubloon.call_stream"},
    "shard_node": {"cluster", "doubloon.v1"},
    "router": {"cluster", "doubloon.v1"},
    "coordinator": {"cluster", "doubloon.v1"},
    "doubloon": set(),
    "scripts": {"cluster", "doubloon"},
}
OURS = {*ROOMS, "tests"}

# What game servers must not have to install. The SDK takes these and the standard library.
SDK_TAKES = {"grpc", "google", "msgspec"}

# Third parties that only one room may touch: its seam hides them from the others. The benchmarks
# measure LMDB by itself, beside what is made of it.
ONLY_IN = {"lmdb": {"shard_node", "scripts.bench.cases.floors"}, "etcd3": {"cluster"}}

# Modules that decide and never act. What they import of ours must be pure as well.
PURE_CORES = {
    "cluster.packed",
    "cluster.refusals",
    "cluster.topology",
    "coordinator.actions",
    "coordinator.counters",
    "coordinator.transactions",
    "coordinator.states",
    "coordinator.two_phase",
    "coordinator.window",
    "router.audit",
    "router.groups",
    "router.results",
    "router.routing",
    "shard_node.account_table",
    "shard_node.batch",
    "shard_node.books",
    "shard_node.clearing",
    "shard_node.damage",
    "shard_node.ended",
    "shard_node.groups",
    "shard_node.hours",
    "shard_node.key_table",
    "shard_node.ledger",
    "shard_node.legs",
    "shard_node.memory",
    "shard_node.open_block",
    "shard_node.participant",
    "shard_node.posting",
    "shard_node.recorded",
    "shard_node.records",
    "shard_node.replaying",
    "shard_node.rows",
    "shard_node.scrubbing",
    "shard_node.transactions",
    "tests.history.checker",
    "tests.history.history",
}

# All that a pure core may take from outside: no I/O, clock, chance, threads or event loop.
PURE_TAKES = {
    "__future__", "abc", "bisect", "collections", "contextlib", "copy", "dataclasses", "enum",
    "functools", "hashlib", "heapq", "itertools", "json", "librt.strings", "math",
    "mypy_extensions", "operator", "re", "string", "struct", "types", "typing", "zlib",
}  # fmt: skip

# Messages are data as well; a router's core slices a request in place rather than copy it.
_MESSAGES = {"doubloon.v1.types_pb2", "doubloon.v1.wallet_service_pb2"}
PURE_TAKES_TOO = {
    f"router.{core}": _MESSAGES | {"doubloon.v1"} for core in ("groups", "results", "routing")
}

# Reaching for any of these while a module is imported is work, not a definition.
NOT_AT_IMPORT = {
    "asyncio", "open", "os", "print", "random", "secrets", "socket", "subprocess", "tempfile",
    "threading", "time",
}  # fmt: skip


def _is_in(name: str, packages: set[str]) -> bool:
    return any(name == package or name.startswith(f"{package}.") for package in packages)


def _room_of(module: Module) -> str:
    return module.name.partition(".")[0]


def _in_rooms() -> Iterator[Module]:
    return (module for module in modules().values() if _room_of(module) in ROOMS)


def test_every_python_file_belongs_to_a_room() -> None:
    assert_none([m.shown for m in modules().values() if _room_of(m) not in OURS])


def test_rooms_import_only_inwards() -> None:
    wrong = [
        f"{module.shown}:{line} imports {name}"
        for module in _in_rooms()
        for line, name in module.imports()
        if name.partition(".")[0] in OURS
        and not _is_in(name, {_room_of(module), *ROOMS[_room_of(module)]})
    ]
    assert_none(wrong)


def test_the_sdk_needs_little() -> None:
    allowed = {"doubloon", *SDK_TAKES, *sys.stdlib_module_names}
    wrong = [
        f"{module.shown}:{line} imports {name}"
        for module in _in_rooms()
        if _room_of(module) == "doubloon"
        for line, name in module.imports()
        if not _is_in(name, allowed)
    ]
    assert_none(wrong)


@pytest.mark.parametrize("third_party", ONLY_IN)
def test_a_seam_hides_its_third_party(third_party: str) -> None:
    wrong = [
        f"{module.shown}:{line}"
        for module in _in_rooms()
        if not {_room_of(module), module.name} & ONLY_IN[third_party]
        for line, name in module.imports()
        if _is_in(name, {third_party})
    ]
    assert_none(wrong)


@pytest.mark.parametrize("core", sorted(PURE_CORES & modules().keys()))
def test_pure_cores_take_nothing_that_acts(core: str) -> None:
    # A package's __init__ runs before any module in it, so it has to be as pure.
    chain = [core, *(core.rsplit(".", up)[0] for up in range(1, core.count(".") + 1))]
    allowed = PURE_TAKES | PURE_CORES | PURE_TAKES_TOO.get(core, set())
    wrong = [
        f"{modules()[name].shown}:{line} imports {taken}"
        for name in chain
        if name in modules()
        for line, taken in modules()[name].imports()
        if not _is_in(taken, allowed)
    ]
    assert_none(wrong)


def _work_at_import(module: Module) -> Iterator[str]:
    for statement in module.tree.body:
        match statement:
            case ast.Expr(value=ast.Constant()) | ast.Import() | ast.ImportFrom():
                continue
            case ast.FunctionDef() | ast.AsyncFunctionDef() | ast.ClassDef() | ast.Assert():
                continue
            case ast.If(test=ast.Name(id="TYPE_CHECKING") | ast.Compare()):
                continue  # `if __name__ == "__main__":` or a Python version
            case ast.Assign() | ast.AnnAssign():
                reached = _names_called(statement) & NOT_AT_IMPORT
            case _:
                reached = {type(statement).__name__}
        for what in sorted(reached):
            yield f"{module.shown}:{statement.lineno} {what}"


def _names_called(statement: ast.stmt) -> set[str]:
    """The first names of all that a statement calls or reads an attribute of, lambdas aside."""
    names = set()
    todo: list[ast.AST] = [statement]
    while todo:
        node = todo.pop()
        if isinstance(node, ast.Lambda):
            continue
        if isinstance(node, ast.Call):
            first: ast.expr = node.func
            while isinstance(first, ast.Attribute):
                first = first.value
            if isinstance(first, ast.Name):
                names.add(first.id)
        todo.extend(ast.iter_child_nodes(node))
    return names


def test_importing_does_nothing_but_define() -> None:
    assert_none([work for module in _in_rooms() for work in _work_at_import(module)])


def test_nothing_rebinds_a_global() -> None:
    wrong = [
        f"{module.shown}:{node.lineno}"
        for module in _in_rooms()
        for node in ast.walk(module.tree)
        if isinstance(node, ast.Global)
    ]
    assert_none(wrong)


def test_the_sdk_in_use_is_the_one_of_this_checkout() -> None:
    origin = importlib.metadata.distribution("doubloon").read_text("direct_url.json")
    assert origin is not None, "doubloon came from a registry"
    assert (ROOT / "client").as_uri() in origin
