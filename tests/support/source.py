"""The project's own source, as the tests of layering and style see it."""

import ast
import functools
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tests.support import ROOT

GENERATED = ROOT / "client" / "doubloon" / "v1"
TEXT_SUFFIXES = frozenset({
    "", ".cfg", ".in", ".md", ".proto", ".py", ".sh", ".sql", ".toml", ".txt", ".yaml", ".yml",
})  # fmt: skip
NOT_OURS = frozenset({"__pycache__", "build", "dist", "node_modules", "var"})


@dataclass(frozen=True)
class Module:
    """One Python file: its import name, where it is, and what it says."""

    name: str
    path: Path
    text: str
    tree: ast.Module

    @property
    def shown(self) -> str:
        """The path as a person would write it, from the checkout."""
        return str(self.path.relative_to(ROOT))

    def imports(self) -> Iterator[tuple[int, str]]:
        """Every import anywhere in the file: line and the dotted name of what it takes.

        `from a import b` counts as `a.b`, for b may be a module.
        """
        package = self.name if self.path.stem == "__init__" else self.name.rpartition(".")[0]
        for node in ast.walk(self.tree):
            if isinstance(node, ast.Import):
                yield from ((node.lineno, alias.name) for alias in node.names)
            elif isinstance(node, ast.ImportFrom):
                above = package.split(".")[: len(package.split(".")) - node.level + 1]
                base = ".".join([*(above if node.level else []), node.module or ""]).strip(".")
                yield from ((node.lineno, f"{base}.{alias.name}") for alias in node.names)


@functools.cache
def modules() -> dict[str, Module]:
    """Every Python module that is written by hand, by import name."""
    found = {}
    for path in texts():
        if path.suffix != ".py" or path.is_relative_to(GENERATED):
            continue
        relative = path.relative_to(ROOT / "client" if "client" in path.parts else ROOT)
        parts = relative.with_suffix("").parts
        name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
        text = path.read_text(encoding="utf-8")
        found[name] = Module(name, path, text, ast.parse(text, filename=str(path)))
    return found


@functools.cache
def texts() -> tuple[Path, ...]:
    """Every text file of the project, generated ones included, in a stable order."""
    return tuple(sorted(_walk(ROOT)))


def _walk(folder: Path) -> Iterator[Path]:
    for entry in os.scandir(folder):
        hidden = entry.name.startswith(".") and entry.name not in {".ci", ".gitignore"}
        if hidden or entry.name in NOT_OURS or entry.name.endswith(".egg-info"):
            continue
        if entry.is_dir(follow_symlinks=False):
            yield from _walk(Path(entry.path))
        elif Path(entry.name).suffix in TEXT_SUFFIXES:
            yield Path(entry.path)
