"""What a mutant is, and how its mistake gets into the source."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from pathlib import Path

SECONDS_MAX: Final = 90.0
"""How long a rig may take, unless it says otherwise: many times what it needs on a busy machine."""


class Promise(StrEnum):
    """What a mutant breaks: the ten promises of the design, and what the contract says besides."""

    CONSERVATION = "conservation"
    NO_OVERDRAFT = "no overdraft"
    EXACTLY_ONCE = "exactly once"
    ATOMICITY = "atomicity"
    DURABILITY = "durability"
    LINEARIZABILITY = "linearizability"
    AGGREGATES = "aggregates = fold(log)"
    TAMPER_EVIDENCE = "tamper evidence"
    SINGLE_WRITER = "single writer"
    BOUNDED = "bounded"
    CONTRACT = "the contract"


class StaleMutantError(Exception):
    """What a mutant replaces is not in the source, or not once: it has to be written anew."""


@dataclass(frozen=True, slots=True)
class Edit:
    """One piece of the source replaced by another.

    Attributes:
        file: from the checkout's root.
        was: must stand in it exactly once.
        now: what takes its place.
    """

    file: str
    was: str
    now: str

    def apply_to(self, text: str) -> str:
        """The file's text with the mistake in it.

        Raises:
            StaleMutantError: see there.
        """
        count = text.count(self.was)
        if count != 1:
            raise StaleMutantError(f"{self.file} has this {count} times, not once:\n{self.was}")
        return text.replace(self.was, self.now)


@dataclass(frozen=True, slots=True)
class Rig:
    """What has to notice a mistake.

    Attributes:
        arguments: what follows `python` on the command line. Exit status 1 is red, 0 is green.
        is_quick: whether it takes some seconds only.
        seconds_max: what it may take.
    """

    arguments: tuple[str, ...]
    is_quick: bool = True
    seconds_max: float = SECONDS_MAX

    @property
    def is_pytest(self) -> bool:
        """Whether it is made of tests."""
        return self.arguments[:2] == ("-m", "pytest")

    def __str__(self) -> str:
        """As it is shown to people."""
        if not self.is_pytest:
            return " ".join(("python", *self.arguments))
        return " ".join(each.removeprefix("tests/") for each in self.arguments[2:])


@dataclass(frozen=True, slots=True)
class Mutant:
    """One mistake.

    Attributes:
        name: what is wrong, in a few words; no two are alike.
        promise: what it breaks.
        rig: what has to turn red.
        edits: how it is planted. None = by the rig itself, which is green once it has noticed.
        is_of_the_twelve: whether it is one of those that must always be there.
        right: a rig that plants by itself, without the mistake; must be green.
    """

    name: str
    promise: Promise
    rig: Rig
    edits: tuple[Edit, ...] = ()
    is_of_the_twelve: bool = False
    right: Rig | None = None

    @property
    def unharmed(self) -> Rig:
        """What has to be green without the mistake."""
        return self.right or self.rig

    def check(self, root: Path) -> None:
        """Looks whether it can be planted in a source tree.

        Raises:
            StaleMutantError: see there.
        """
        self._harmed(root)

    def plant(self, root: Path) -> None:
        """Makes the mistake in a copy of the source tree; as `check`."""
        for path, text in self._harmed(root).items():
            path.write_text(text, encoding="utf-8")

    def _harmed(self, root: Path) -> dict[Path, str]:
        """The files concerned, with the mistake in them."""
        texts: dict[Path, str] = {}
        for edit in self.edits:
            path = root / edit.file
            if not path.is_file():
                raise StaleMutantError(f"{self.name}: there is no {edit.file}")
            before = texts.get(path) or path.read_text(encoding="utf-8")
            try:
                texts[path] = edit.apply_to(before)
            except StaleMutantError as error:
                raise StaleMutantError(f"{self.name}: {error}") from error
        for path, text in texts.items():
            compile(text, str(path), "exec")  # a mistake, and not a slip of the pen
        return texts


def found_by(*nodes: str, quick: bool = True, seconds_max: float = SECONDS_MAX) -> Rig:
    """A rig made of tests: files, or `file::test`, from the folder of tests."""
    return Rig(("-m", "pytest", *(f"tests/{each}" for each in nodes)), quick, seconds_max)


def planted(
    name: str, promise: Promise, rig: Rig, *edits: Edit, of_the_twelve: bool = False
) -> Mutant:
    """A mutant that is planted in the source."""
    assert edits, f"{name}: nothing is wrong with it"
    return Mutant(name, promise, rig, edits, of_the_twelve)
