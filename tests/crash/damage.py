"""Bytes that change behind the node's back, anywhere in the log's or the state's file.

A folder is written by a real engine; at some moment a copy is made, whose pages are the older
versions that a lost write would leave. Then it is damaged at a random place, and looked at as
`--verify-all`, as a pass of the scrub and as an ordinary start would (`opener`).
"""

import asyncio
import pickle
import random
import shutil
import tempfile
from collections import Counter
from collections.abc import Callable, Generator
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path

from cluster.clock import ManualClock
from shard_node.books import HOUR_US
from tests.crash.opener import (
    CRASHED,
    FINE,
    KILLED,
    REFUSED,
    SCRUB,
    SERVE,
    VERIFY,
    WRONG,
    Look,
    Opener,
)
from tests.crash.verdict import History
from tests.crash.workload import STREAMS, execute, stream
from tests.support.engines import abandon
from tests.support.folders import open_here, opened_us
from tests.support.ledgers import IDENTITY

PAGE = 4_096
COMMANDS = 25  # of each stream: two files of about 40 pages
TRIALS_PER_FOLDER = 100
META_PAGES = 2  # LMDB's first pages name the root of the tree, each commit in the other one
FILES = ("log", "state")


@dataclass
class Written:
    """What a healthy node left.

    Attributes:
        data: its folder.
        older: the same, as it was some time before.
        history: what it answered, pickled.
    """

    data: Path
    older: Path
    history: Path


async def write_folder(folder: Path, seed: int, commands: int) -> Written:
    """Run an engine through the streams, with checkpoints, and leave it as a kill does."""
    written = Written(folder / "data", folder / "older", folder / "history")
    history = History(seed)
    epoch = history.next_epoch()
    wall = ManualClock(opened_us(epoch) - HOUR_US)
    engine, fatal = open_here(written.data, epoch=epoch, identity=IDENTITY, wall=wall)
    await engine.start(history.epoch)
    prepared: set[bytes] = set()
    streams = [stream(seed, history.epoch, each) for each in range(STREAMS + 1)]
    for at in range(commands):
        for each in streams:
            for command in islice(each, 1):
                answer = await execute(engine, command, prepared)
                history.knowledge.hear(command, answer)
                history.asked.append(command)
        if at == commands // 2:
            wall.advance(HOUR_US)  # so that there are periods that ended
            shutil.copytree(written.data, written.older)
    assert not fatal
    await abandon(engine)
    engine.store.state.close()
    engine.store.log.close()
    written.history.write_bytes(pickle.dumps(history))
    return written


@dataclass(frozen=True)
class Damage:
    """Damage to one file.

    Attributes:
        kind: one of `KINDS`.
        file: of which environment.
        at: where, bytes; of a page its beginning.
        detail: which bit, how many bytes; as the kind needs it.
    """

    kind: str
    file: str
    at: int
    detail: int

    def do(self, folder: Path, older: Path) -> None:
        """Damage a folder."""
        path = folder / self.file / "data.mdb"
        content = bytearray(path.read_bytes())
        before = bytearray((older / self.file / "data.mdb").read_bytes())
        KINDS[self.kind](content, self, before)
        path.write_bytes(content)

    def loses_the_tail(self) -> bool:
        """Whether it may look like an older log that was whole."""
        return self.file == "log" and self.at < META_PAGES * PAGE


def _flip(content: bytearray, it: Damage, older: bytearray) -> None:
    content[it.at] ^= 1 << it.detail % 8


def _zero(content: bytearray, it: Damage, older: bytearray) -> None:
    page = it.at // PAGE * PAGE
    content[page : page + PAGE] = bytes(PAGE)


def _garbage(content: bytearray, it: Damage, older: bytearray) -> None:
    page = it.at // PAGE * PAGE
    content[page : page + PAGE] = random.Random(it.detail).randbytes(PAGE)


def _torn(content: bytearray, it: Damage, older: bytearray) -> None:
    """The first sectors of a page are new, the others are still the older ones, or zeros."""
    page = it.at // PAGE * PAGE
    cut = page + 512 * (1 + it.detail % 7)
    content[cut : page + PAGE] = older[cut : page + PAGE].ljust(page + PAGE - cut, b"\0")


def _stale(content: bytearray, it: Damage, older: bytearray) -> None:
    """The page's latest write was lost."""
    page = it.at // PAGE * PAGE
    content[page : page + PAGE] = older[page : page + PAGE].ljust(PAGE, b"\0")


def _misplaced(content: bytearray, it: Damage, older: bytearray) -> None:
    """A page was written over another."""
    page, other = it.at // PAGE * PAGE, it.detail % (len(content) // PAGE) * PAGE
    content[page : page + PAGE] = content[other : other + PAGE]


def _truncate(content: bytearray, it: Damage, older: bytearray) -> None:
    del content[it.at :]


KINDS: dict[str, Callable[[bytearray, Damage, bytearray], None]] = {
    "a flipped bit": _flip,
    "a page of zeros": _zero,
    "a page of garbage": _garbage,
    "a torn page": _torn,
    "a lost write": _stale,
    "a misplaced write": _misplaced,
    "a truncated file": _truncate,
}
WEIGHTS = (8, 2, 2, 2, 2, 2, 1)


def random_damage(rng: random.Random, written: Written) -> Damage:
    """Any kind, anywhere."""
    (kind,) = rng.choices([*KINDS], WEIGHTS)
    file = rng.choice(FILES)
    size = (written.data / file / "data.mdb").stat().st_size
    return Damage(kind, file, rng.randrange(size), rng.getrandbits(32))


@dataclass
class DamageCount:
    """What trials came to."""

    trials: int = 0
    by_kind: Counter[str] = field(default_factory=Counter)
    looks: Counter[str] = field(default_factory=Counter)

    def rows(self) -> dict[str, int]:
        """For people and programs."""
        return {"trials": self.trials, **self.by_kind, **dict(sorted(self.looks.items()))}


def try_damage(
    damage: Damage, written: Written, folder: Path, opener: Opener, count: DamageCount
) -> tuple[Look, Look]:
    """Damage a copy and look at it: as `--verify-all`, then as an ordinary start.

    Where the start came upon nothing, a pass of the scrub looks as well, at the same damage.
    """
    shutil.copytree(written.data, folder)
    damage.do(folder, written.older)
    verified = opener.look(VERIFY, folder)
    served = opener.look(SERVE, folder)
    shutil.rmtree(folder)
    if served.verdict in (FINE, WRONG):
        shutil.copytree(written.data, folder)
        damage.do(folder, written.older)
        scrubbed = opener.look(SCRUB, folder)
        shutil.rmtree(folder)
        missed = f"--verify-all: {verified.verdict}, served: {served.verdict}"
        count.looks[f"scrubbed where {missed}: {scrubbed.verdict}"] += 1
        check_scrub(damage, verified, served, scrubbed)
    count.trials += 1
    count.by_kind[damage.kind] += 1
    count.looks[f"--verify-all: {verified.verdict}, then served: {served.verdict}"] += 1
    return verified, served


def check_looks(damage: Damage, verified: Look, served: Look) -> None:
    """Damage is found and named by `--verify-all`, or it is harmless; a start never crashes on it.

    An ordinary start reads neither old blocks nor the whole state. So it may answer wrongly from a
    record of an old block, whose hash single look-ups do not check, or where a page of the state's
    tree has lost a row; how often is counted, and `--verify-all` has found every one of them. One
    kind of damage nothing on the disk can tell: the disk lost the latest write of the page that
    names the root, and shows a log that was whole a moment ago (promise 8 says so).
    """
    told = f"{damage}: --verify-all: {verified}, a start: {served}"
    assert verified.verdict in (FINE, REFUSED), told
    assert served.verdict != CRASHED, told
    if verified.verdict == FINE and not (served.verdict == WRONG and damage.loses_the_tail()):
        assert served.verdict == FINE, told


def check_scrub(damage: Damage, verified: Look, served: Look, scrubbed: Look) -> None:
    """The scrub finds what would be answered wrongly, and is not alarmed by what is harmless.

    What only the structure of the file shows, its list of free pages, no reader can look at.
    """
    told = f"{damage}: --verify-all: {verified}, a start: {served}, a scrub: {scrubbed}"
    if verified.verdict == FINE:
        assert scrubbed.verdict == FINE, told
    else:
        structural = served.verdict == FINE and "file is damaged" in verified.message
        assert scrubbed.verdict in (REFUSED, KILLED) or structural, told


def damages(seed: int, trials: int, count: DamageCount) -> Generator[int]:
    """Damage so many copies; yields how many, then once after each."""
    rng = random.Random(seed)
    yield trials
    for each in range(0, trials, TRIALS_PER_FOLDER):
        with tempfile.TemporaryDirectory(prefix="doubloon-damage-") as folder:
            written = asyncio.run(write_folder(Path(folder), seed + each, COMMANDS))
            with Opener(written.history) as opener:
                for number in range(each, min(each + TRIALS_PER_FOLDER, trials)):
                    it = random_damage(rng, written)
                    looks = try_damage(it, written, Path(folder, "copy"), opener, count)
                    try:
                        check_looks(it, *looks)
                    except AssertionError as error:
                        error.add_note(f"seed {seed}, trial {number}")
                        raise
                    yield number
