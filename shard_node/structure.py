"""Whether an LMDB file is sound, looked at from outside.

LMDB believes what it reads: a damaged page of its tree can end the process without a word, or lead
a search past a row that is there. So before a file is read through, page by page, its structure is
checked byte by byte, by py-lmdb's verifier, which opens nothing: that every page of the tree is
where it should be, its keys in order, and that pages in use and free pages are all there are.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from lmdb.verify import VerifyError, verify

if TYPE_CHECKING:
    from pathlib import Path


def structural_damage(environment: Path) -> str:
    """What is wrong with the tree of an environment's file; empty = nothing, or no file.

    A file without a byte is none: LMDB makes it and then writes its first pages, and a process that
    ends in between leaves it behind. To be called while nobody writes to it.
    """
    file = environment / "data.mdb"
    if not file.exists() or file.stat().st_size == 0:
        return ""
    try:
        found: list[str] = verify(str(environment))  # type: ignore[no-untyped-call]  # it ships no types
    except VerifyError as error:
        return str(error)
    return f"{found[0]} ({len(found)} problems)" if found else ""
