"""Files that end before the last page that LMDB counts: rightly, or because they were cut short."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lmdb
import pytest
from lmdb.verify import _Verifier

from shard_node.damage import DamagedStateError
from shard_node.log import LmdbLog
from shard_node.records import DamagedLogError
from shard_node.state import StateFile
from tests.support.blocks import draft_of
from tests.support.engines import IDENTITY

MAP_BYTES = 64 * 1024 * 1024
PAGE_BYTES = 4_096
PAGES = 60
Opener = Callable[[Path], None]


def make_log(path: Path) -> None:
    log = LmdbLog(path, IDENTITY, 1, MAP_BYTES)
    log.append([draft_of(1, [bytes(250)] * 60)])
    log.close()


def make_state(path: Path) -> None:
    file = StateFile(path, MAP_BYTES)
    with file.env.begin(write=True, db=file.accounts) as txn:
        for number in range(60):
            assert txn.put(b"%d" % number, bytes(1_000))
    file.env.close()


def open_log(path: Path) -> None:
    LmdbLog(path, IDENTITY, 1, MAP_BYTES).close()


def open_state(path: Path) -> None:
    StateFile(path, MAP_BYTES).env.close()


KINDS = pytest.mark.parametrize(
    ("make", "open_it"), [(make_log, open_log), (make_state, open_state)], ids=["log", "state"]
)


def end_before_free_pages(path: Path) -> int:
    """Make a file as LMDB may leave it: without the free pages at its end; how many those were.

    It leaves out what was taken and given back in one transaction, if that is not taken again.
    """
    keys = [b"\xff" + bytes([number]) for number in range(PAGES)]
    with lmdb.open(str(path), map_size=MAP_BYTES) as env:
        with env.begin(write=True) as txn:
            for key in keys:
                assert txn.put(key, bytes(1_900))
        for key in keys:
            with env.begin(write=True) as txn:
                assert txn.delete(key)
    with (path / "data.mdb").open("r+b") as file:
        size = file.seek(0, os.SEEK_END)
        verifier: Any = _Verifier(file, size)  # type: ignore[no-untyped-call]  # it ships no types
        assert not verifier.verify()
        pages = len(verifier.free)
        assert pages * PAGE_BYTES == size
        while verifier.free[pages - 1]:
            pages -= 1
        file.truncate(pages * PAGE_BYTES)
    return len(verifier.free) - pages


@KINDS
def test_a_file_may_end_before_free_pages(make: Opener, open_it: Opener, tmp_path: Path) -> None:
    make(tmp_path)
    assert end_before_free_pages(tmp_path), "it has them all, so this shows nothing"
    open_it(tmp_path)


@KINDS
def test_a_file_that_ends_before_a_page_in_use_is_refused(
    make: Opener, open_it: Opener, tmp_path: Path
) -> None:
    """However much of it is cut: of the log the last page is in the middle of a large value."""
    make(tmp_path)
    file = tmp_path / "data.mdb"
    size = file.stat().st_size
    for cut in (1, PAGE_BYTES, 2 * PAGE_BYTES, size // 2):
        with file.open("r+b") as opened:
            opened.truncate(size - cut)
        with pytest.raises((DamagedLogError, DamagedStateError), match=f"cut short by {cut} bytes"):
            open_it(tmp_path)
