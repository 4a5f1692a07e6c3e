"""What no linter of ours checks: short functions, reasons beside exemptions, tests that wait
for events and not for time, names of things outside the project, and dead code.
"""

import ast
import re
import tokenize
from collections.abc import Iterator
from io import StringIO

import pytest
import vulture

from tests.support import ROOT, assert_none
from tests.support.source import GENERATED, Module, modules, texts

FUNCTION_LINES_MAX = 70  # one screen
FILE_LINES_MAX = 500  # aim at 300; past this nobody reads a file from top to bottom
REASON_LETTERS_MIN = 7  # "as above" will do; less explains nothing

SDK = ROOT / "client" / "doubloon"

EXEMPTION = re.compile(
    r"#\s*(?:noqa(?::\s*[A-Z]+\d+(?:\s*,\s*[A-Z]+\d+)*)?|type:\s*ignore(?:\[[\w, -]*\])?"
    r"|pragma:\s*no cover)"
)

# The project's text stands by itself: it is read where none of these can be looked up.
FOREIGN = {
    "a tracker's number": re.compile(r"\bissues?\s+#?\d+\b|(?<![\w\"'`&#/])#\d+\b", re.IGNORECASE),
    "a folder of one machine": re.compile(r"(?<![\w.:/-])/(?:work|home|root|Users)/\w"),
    "a package registry's host": re.compile(
        r"\b(?:pypi\.org|pythonhosted\.org|npmjs\.(?:org|com)|deb\.debian\.org|crates\.io)\b"
    ),
}


def test_functions_fit_on_a_screen() -> None:
    long = [
        f"{module.shown}:{node.lineno} {node.name}: {length} lines"
        for module in modules().values()
        for node in ast.walk(module.tree)
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        and (length := (node.end_lineno or 0) - node.lineno + 1) > FUNCTION_LINES_MAX
    ]
    assert_none(long)


def test_files_can_be_read_in_one_go() -> None:
    long = [
        f"{module.shown}: {length} lines"
        for module in modules().values()
        if (length := module.text.count("\n")) > FILE_LINES_MAX
    ]
    assert_none(long)


def _exemptions_without_reason(text: str) -> Iterator[int]:
    for token in tokenize.generate_tokens(StringIO(text).readline):
        if token.type == tokenize.COMMENT and EXEMPTION.search(token.string):
            reason = EXEMPTION.sub("", token.string)
            if sum(map(str.isalpha, reason)) < REASON_LETTERS_MIN:
                yield token.start[0]


def test_every_exemption_says_why() -> None:
    bare = [
        f"{module.shown}:{line}"
        for module in modules().values()
        for line in _exemptions_without_reason(module.text)
    ]
    assert_none(bare)


@pytest.mark.parametrize(
    ("line", "is_bare"),
    [
        ("x = 1  # noqa: E501", True),
        ("x = 1  # noqa: E501, S603", True),
        ("x = 1  # type: ignore[attr-defined, misc]", True),
        ("x = 1  # type: ignore[misc]  # noqa: E501", True),
        ("x = 1  # noqa: E501 - the table reads best on one line", False),
        ("x = 1  # type: ignore[misc]  # the library ships no types", False),
        ("x = '# noqa'", False),
    ],
)
def test_the_search_for_bare_exemptions(*, line: str, is_bare: bool) -> None:
    assert list(_exemptions_without_reason(line + "\n")) == [1] * is_bare


def _sleeps(module: Module) -> Iterator[str]:
    """Calls of a sleep with a time written in place; `sleep(0)` only lets others run."""
    for node in ast.walk(module.tree):
        if not isinstance(node, ast.Call) or not ast.unparse(node.func).endswith("sleep"):
            continue
        match node.args:
            case [ast.Constant(value=0)] if "time" not in ast.unparse(node.func):
                continue
            case [ast.Constant()]:
                yield f"{module.shown}:{node.lineno}"
            case _ if ast.unparse(node.func) == "time.sleep":
                yield f"{module.shown}:{node.lineno}"


def test_tests_wait_for_events_and_not_for_time() -> None:
    tests = [module for name, module in modules().items() if name.startswith("tests.")]
    assert tests
    assert_none([place for module in tests for place in _sleeps(module)])


def test_the_text_speaks_of_the_project_alone() -> None:
    found = [
        f"{path.relative_to(ROOT)}:{number} names {what}: {line.strip()}"
        for path in texts()
        if path != ROOT / "tests" / "unit" / "test_style.py"  # it has to spell them
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1)
        for what, pattern in FOREIGN.items()
        if pattern.search(line)
    ]
    assert_none(found)


def test_no_dead_code() -> None:
    """Whatever is defined is used, if only by a test. Fields and constants may document."""
    search = vulture.Vulture(
        # Called by gRPC, click, pytest, hypothesis and asyncio, and by no name of ours.
        ignore_names=[
            *(*_rpc_names(), "__*__", "intercept_service", "convert", "get_debug"),
            *("pytest_*", "test_*", "teardown"),
        ],
        ignore_decorators=[
            *("@pytest.*", "@*.command", "@*.group", "@click.*", "@overload"),
            *("@initialize", "@invariant", "@precondition", "@rule"),
        ],
    )
    search.scavenge([str(module.path) for module in modules().values()])
    kinds = {"class", "function", "import", "method", "property", "unreachable_code"}
    dead = [
        f"{item.filename.relative_to(ROOT)}:{item.first_lineno} {item.typ} {item.name}"
        for item in search.get_unused_code(min_confidence=60)
        if item.typ in kinds
        # What the SDK offers is used by programs that are not here.
        and (not item.filename.is_relative_to(SDK) or item.name.startswith("_"))
    ]
    assert_none(dead)


def _rpc_names() -> set[str]:
    return {
        name
        for stub in GENERATED.glob("*_pb2_grpc.pyi")
        for name in re.findall(r"def ([A-Z]\w+)\(", stub.read_text(encoding="utf-8"))
    }
