"""What the documents say of the code is so: files, names, commands, options, bounds, records."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support import ROOT, assert_none, bounds
from tests.support.source import modules, texts

DECISIONS = ROOT / "docs" / "decisions"
RECORD = re.compile(r"(\d{4})-[a-z0-9-]+\.md")
RECORD_LINES_MAX = 40

# A path as the documents write one: in backticks, from the checkout's root.
PATH = re.compile(r"`([\w.-]+/[\w./-]*|[\w-]+\.(?:py|md|toml|yaml))`")
LINK = re.compile(r"\]\((?!https?:)([^)#\s]+)")
DEFINED = re.compile(r"`([A-Za-z_][\w.]*)`\s+\(`([\w./-]+\.py)`\)")
MAKE = re.compile(r"\bmake ([a-z]+)\b(?=`|\s*(?:#.*)?$)", re.MULTILINE)
OPTION = re.compile(r"(?<![\w-])--[a-z][a-z-]+")

# What a shard's folder holds, and what clones do not: named as paths, and not of the checkout.
NOT_IN_THE_CHECKOUT = re.compile(r"(?:log|state|build|var|shard-\d|\.venv)/")
OF_OTHER_PROGRAMS = {
    "--advertise-client-urls", "--data-dir", "--listen-client-urls", "--listen-peer-urls",
}  # fmt: skip


def _documents() -> list[Path]:
    return [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]


def _named() -> Iterator[tuple[str, str]]:
    """Every (document, text) that speaks of today's code; records speak of their day's."""
    for path in _documents():
        if not path.is_relative_to(DECISIONS):
            yield str(path.relative_to(ROOT)), path.read_text(encoding="utf-8")


def _missing_files(text: str) -> list[str]:
    alone = {path.name for path in texts()}
    return [
        path
        for path in PATH.findall(text)
        if not NOT_IN_THE_CHECKOUT.match(path) and path not in alone and not (ROOT / path).exists()
    ]


def test_every_file_named_exists() -> None:
    assert_none([f"{document} names {each}" for document, text in _named()
                 for each in _missing_files(text)])  # fmt: skip


@pytest.mark.parametrize(
    ("text", "missing"),
    [
        ("see `cluster/packed.py`, `cluster/` and `Makefile`", []),
        ("beside `packed.py`, under `log/data.mdb`", []),
        ("see `cluster/gone.py`", ["cluster/gone.py"]),
        ("in `gone/` or `gone.md`", ["gone/", "gone.md"]),
    ],
)
def test_the_search_for_missing_files(*, text: str, missing: list[str]) -> None:
    assert _missing_files(text) == missing


def test_every_link_leads_somewhere() -> None:
    assert_none([
        f"{path.relative_to(ROOT)} links {link}"
        for path in _documents()
        for link in LINK.findall(path.read_text(encoding="utf-8"))
        if not (path.parent / link).exists()
    ])  # fmt: skip


def _defines(tree: ast.Module, name: str) -> bool:
    body: list[ast.stmt] = tree.body
    for part in name.split("."):
        found = next((node for node in body if part in _names(node)), None)
        if found is None:
            return False
        body = found.body if isinstance(found, ast.ClassDef) else []
    return True


def _names(node: ast.stmt) -> set[str]:
    match node:
        case ast.ClassDef(name=name) | ast.FunctionDef(name=name) | ast.AsyncFunctionDef(name=name):
            return {name}
        case ast.Assign(targets=targets):
            return {target.id for target in targets if isinstance(target, ast.Name)}
        case ast.AnnAssign(target=ast.Name(id=name)):
            return {name}
    return set()


def _undefined(text: str) -> list[str]:
    trees = {module.shown: module.tree for module in modules().values()}
    return [
        f"{name} in {file}"
        for name, file in DEFINED.findall(text)
        if file not in trees or not _defines(trees[file], name)
    ]


def test_every_name_is_defined_in_its_file() -> None:
    """`Name.method` (`file.py`) is how the documents name code."""
    assert_none([f"{document}: {each}" for document, text in _named() for each in _undefined(text)])


@pytest.mark.parametrize(
    ("text", "undefined"),
    [
        ("`Topology.shard_of` (`cluster/topology.py`)", []),
        ("`SLOTS` (`cluster/topology.py`) and\n`slot_of`\n  (`cluster/topology.py`)", []),
        ("`Topology.gone` (`cluster/topology.py`)", ["Topology.gone in cluster/topology.py"]),
        ("`slot_of` (`cluster/gone.py`)", ["slot_of in cluster/gone.py"]),
    ],
)
def test_the_search_for_undefined_names(*, text: str, undefined: list[str]) -> None:
    assert _undefined(text) == undefined


def test_every_make_target_exists() -> None:
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    asked = [(document, each) for document, text in _named() for each in MAKE.findall(text)]
    assert asked
    assert_none([f"{document}: make {each}" for document, each in asked if each not in targets])


def test_every_option_exists() -> None:
    ours = {
        option
        for path in texts()
        if path.suffix == ".py" and "tests" not in path.parts
        for option in re.findall(r'"(--[a-z-]+)"', path.read_text(encoding="utf-8"))
    }
    named = [
        (document, option)
        for document, text in _named()
        if document in {"README.md", "docs/operations.md"}
        for option in OPTION.findall(text)
    ]
    assert named
    assert_none([
        f"{document} names {option}"
        for document, option in named
        if option not in ours | OF_OTHER_PROGRAMS
    ])  # fmt: skip


def test_the_table_of_bounds_is_fresh() -> None:
    page = bounds.PAGE.read_text(encoding="utf-8")
    assert page == bounds.with_table(page), "`python -m tests.support.bounds` writes it anew"


def test_every_bound_says_why() -> None:
    assert_none([f"{each.file}: {each.name}" for each in bounds.bounds() if not each.reason])


@pytest.mark.parametrize(
    ("name", "value", "shown"),
    [
        ("QUEUE_MAX", 65_536, "65,536"),
        ("SHARE", 0.95, "0.95"),
        ("BLOCK_BYTES_MAX", 512 * 1024, "512 KiB"),
        ("REASON_BYTES_MAX", 257, "257 B"),
        ("Limits.log_map_bytes", 256 * 1024**3, "256 GiB"),
        ("WAIT_S", 0.02, "20 ms"),
        ("linger_s", 0.0, "0 s"),
        ("KEEPALIVE_TIME_MS", 10_000, "10 s"),
        ("SHIFT_US", 3_600_000_000, "1 h"),
        ("scrub_bytes_per_s", 4 * 1024**2, "4 MiB/s"),
    ],
)
def test_how_bounds_are_shown(*, name: str, value: float, shown: str) -> None:
    assert bounds.show(name, value) == shown


def test_decision_records_are_numbered_listed_dated_and_short() -> None:
    records = sorted(path for path in DECISIONS.iterdir() if RECORD.fullmatch(path.name))
    numbers = [int(path.name[:4]) for path in records]
    assert numbers == list(range(len(records))), "each number once, none left out"
    index = (DECISIONS / "README.md").read_text(encoding="utf-8")
    wrong = []
    for path in records[1:]:  # the first is the template
        text = path.read_text(encoding="utf-8")
        lines = text.splitlines()
        if f"]({path.name})" not in index:
            wrong.append(f"{path.name} is not in the index")
        if not lines[0].startswith(f"# {path.name[:4]}: "):
            wrong.append(f"{path.name} begins with {lines[0]!r}")
        if not re.search(r"^Date: \d{4}-\d\d-\d\d\. Status: ", text, re.MULTILINE):
            wrong.append(f"{path.name} has no date and status")
        if len(lines) > RECORD_LINES_MAX:
            wrong.append(f"{path.name} has {len(lines)} lines, more than {RECORD_LINES_MAX}")
    assert_none(wrong)
