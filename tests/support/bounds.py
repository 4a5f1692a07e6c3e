"""The table of bounds in `docs/architecture.md`, made from the code that it speaks of.

A bound is a number with a public name in capitals, at the top of a module of a server room or the
SDK, that says why it is what it is: in a comment above or beside it, or in a text below it. So is
each field of a class of such numbers. `python -m tests.support.bounds` writes the table anew; tests
hold that it is fresh, and that nothing that is named like a bound lacks its reason.
"""

import ast
import importlib
import re
from collections.abc import Iterator
from dataclasses import dataclass

from tests.support import ROOT
from tests.support.source import Module, modules

PAGE = ROOT / "docs" / "architecture.md"
BEGIN, END = "<!-- bounds: begin -->\n", "<!-- bounds: end -->\n"

ROOMS = ("cluster", "shard_node", "router", "coordinator", "doubloon")
BOUND = re.compile(r"(^|_)(MAX|MIN|DEFAULT|ATTEMPTS|WINDOW)(_|$)|_M?S$")
OFFSET = re.compile(r"_AT$")
TYPE_LIMIT = 2**62  # from here on a number is what its type can hold, which needs no reason
CLASSES = re.compile(r"(Limits|Policy)$")
BYTES = (("GiB", 2**30), ("MiB", 2**20), ("KiB", 2**10), ("B", 1))
TIMES = (("h", 3_600), ("s", 1), ("ms", 1e-3))


@dataclass(frozen=True)
class Bound:
    """One row: the bound's name, its value, where it is and why it is so ("" = it does not say)."""

    name: str
    value: float
    file: str
    reason: str

    @property
    def shown(self) -> str:
        """The row."""
        return f"| `{self.name}` | {show(self.name, self.value)} | {self.reason} |\n"


def show(name: str, value: float) -> str:
    """Return a value as people write it, in the unit that its name ends in or a larger one."""
    lower = name.lower()
    if lower.endswith("_per_s"):
        return show(lower.removesuffix("_per_s"), value) + "/s"
    for suffix, seconds in (("_us", 1e-6), ("_ms", 1e-3), ("_s", 1)):
        if lower.endswith(suffix):
            in_s = value * seconds
            unit, size = next((each for each in TIMES if in_s >= each[1]), ("s", 1))
            return f"{in_s / size:g} {unit}"
    if "bytes" in lower and isinstance(value, int):
        unit, size = next(each for each in BYTES if value % each[1] == 0)
        return f"{value // int(size):,} {unit}"
    return f"{value:,}" if isinstance(value, int) else f"{value:g}"


def bounds() -> Iterator[Bound]:
    """Yield every bound, in the order of rooms, files and lines."""
    found = [(ROOMS.index(room), name) for name in modules()
             if (room := name.partition(".")[0]) in ROOMS]  # fmt: skip
    for _, name in sorted(found):
        module = modules()[name]
        if name == "doubloon.v1" or name.startswith("doubloon.v1."):
            continue
        yield from _of_module(module)


def table() -> str:
    """Return the whole table; a file's name stands beside its first bound."""
    rows, file = ["| file | bound | value | why |\n|---|---|---|---|\n"], ""
    for bound in bounds():
        rows.append(f"| {'' if bound.file == file else f'`{bound.file}`'} {bound.shown}")
        file = bound.file
    return "".join(rows)


def with_table(page: str) -> str:
    """Return the page with the table as it has to be."""
    before, rest = page.split(BEGIN)
    return f"{before}{BEGIN}\n{table()}\n{END}{rest.split(END)[1]}"


def _of_module(module: Module) -> Iterator[Bound]:
    body, lines = module.tree.body, module.text.splitlines()
    shared = ""  # the comment above several constants is meant for all of them
    for at, node in enumerate(body):
        if isinstance(node, ast.ClassDef) and CLASSES.search(node.name):
            yield from _of_class(module, node)
        names = list(_names(node))
        if not names:
            shared = ""
            continue
        above, last = _comment_above(lines, node.lineno), node.end_lineno or node.lineno
        reason = above or _beside(lines[last - 1]) or _text_below(body, at, last) or shared
        shared = above or ("" if _text_below(body, at, last) else shared)
        for name in names:
            value = getattr(importlib.import_module(module.name), name)
            if not isinstance(value, int | float) or isinstance(value, bool):
                continue
            if OFFSET.search(name) or value == 0:
                continue
            if reason or (BOUND.search(name) and abs(value) < TYPE_LIMIT):
                yield Bound(name, value, module.shown, reason)


def _of_class(module: Module, node: ast.ClassDef) -> Iterator[Bound]:
    made = getattr(importlib.import_module(module.name), node.name)()
    documented = _attributes(ast.get_docstring(node) or "")
    for at, field in enumerate(node.body):
        if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name):
            name = field.target.id
            reason = _text_below(node.body, at) or documented.get(name, "")
            yield Bound(f"{node.name}.{name}", getattr(made, name), module.shown, reason)


def _names(node: ast.stmt) -> Iterator[str]:
    """The names in capitals that a statement at the top of a module gives a value."""
    targets: list[ast.expr] = []
    if isinstance(node, ast.Assign):
        targets = [part for each in node.targets
                   for part in (each.elts if isinstance(each, ast.Tuple) else [each])]  # fmt: skip
    elif isinstance(node, ast.AnnAssign) and node.value is not None:
        targets = [node.target]
    for target in targets:
        if isinstance(target, ast.Name) and re.fullmatch(r"[A-Z][A-Z0-9_]*", target.id):
            yield target.id


def _comment_above(lines: list[str], number: int) -> str:
    said: list[str] = []
    for line in reversed(lines[: number - 1]):
        if not line.startswith("#"):
            break
        said.insert(0, line.removeprefix("#").strip())
    return " ".join(said)


def _beside(line: str) -> str:
    return line.partition("  # ")[2].strip()


def _text_below(body: list[ast.stmt], at: int, last_line: int = 0) -> str:
    """The text below a statement, also below the next of the same family, when it means both."""
    family = _family(body[at])
    for below in body[at + 1 :]:
        if isinstance(below, ast.Expr) and isinstance(below.value, ast.Constant):
            return " ".join(str(below.value.value).split())
        if not family or family != _family(below) or below.lineno != last_line + 1:
            break
        last_line = below.end_lineno or below.lineno
    return ""


def _family(node: ast.stmt) -> str:
    """The first word of the name that a statement gives a number."""
    if isinstance(getattr(node, "value", None), ast.Call):
        return ""
    return next((name.partition("_")[0] for name in _names(node)), "")


def _attributes(docstring: str) -> dict[str, str]:
    """What a docstring's "Attributes:" says of each."""
    said: dict[str, str] = {}
    section = re.sub(r"\n\s{8,}", " ", docstring.partition("Attributes:")[2])
    for names, text in re.findall(r"^\s+([\w, ]+): (.+)$", section, re.MULTILINE):
        said |= dict.fromkeys((name.strip() for name in names.split(",")), text.strip())
    return said


if __name__ == "__main__":
    PAGE.write_text(with_table(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
