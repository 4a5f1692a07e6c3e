"""Whether an LMDB file is sound, looked at from outside.

LMDB believes what it reads: a damaged page of its tree can end the process without a word, or lead
a search past a row that is there. So before a file is read through, page by page, its structure is
checked byte by byte, by py-lmdb's verifier, which opens nothing: that every page of the tree is
where it should be, its keys in order, and that pages in use and free pages are all there are.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

from lmdb.verify import VerifyError, _Verifier, verify

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


def lacks_pages_in_use(environment: Path) -> bool:
    """Whether an environment's file ends before a page of its tree; to touch that would kill.

    It may rightly end before the last page that LMDB counts: one that was taken and given back in
    the same transaction is never written. Which pages are in use is known to the verifier alone,
    and its function for everybody misses one in the middle of a large value; so its map is asked.
    """
    with (environment / "data.mdb").open("rb") as file:
        size = file.seek(0, os.SEEK_END)
        verifier: Any = _Verifier(file, size)  # type: ignore[no-untyped-call]  # it ships no types
        try:
            problems: list[str] = verifier.verify()
        except VerifyError:
            return True
        return bool(problems) or any(verifier.live[size // verifier.psize :])
