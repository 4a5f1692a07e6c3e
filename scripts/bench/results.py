"""What a case gives: figures beside their bars, and what its timed part cost.

Everything here is plain data and goes into the JSON file as it is, so a table can be printed later
and on another machine.
"""

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

FORMAT = 1
"""Of the JSON file; a reader refuses another."""

Direction = Literal["at least", "at most"]


@dataclass(frozen=True)
class Bar:
    """What a figure must reach.

    Attributes:
        number: which of the project's bars, such as `1`.
        direction: whether more or less is better.
        value: in the figure's unit.
        source: where the value comes from when another case of the same run made it; else "".
    """

    number: str
    direction: Direction
    value: float
    source: str = ""

    def met_by(self, value: float) -> bool:
        """Whether a median reaches it."""
        return value >= self.value if self.direction == "at least" else value <= self.value


@dataclass(frozen=True)
class Figure:
    """One measured quantity, once for each repeat.

    Attributes:
        name: what it is, such as `transfers`.
        unit: such as `/s`, `ms`, `bytes`.
        values: one for each repeat, in order; at least one.
        bar: None when it is only told.
    """

    name: str
    unit: str
    values: Sequence[float]
    bar: Bar | None = None

    @property
    def median(self) -> float:
        """The middle value."""
        return statistics.median(self.values)

    def to_json(self) -> dict[str, Any]:
        """Return it with what is derived from it."""
        return {
            "name": self.name,
            "unit": self.unit,
            "values": list(self.values),
            "median": self.median,
            "min": min(self.values),
            "max": max(self.values),
            "bar": None
            if self.bar is None
            else {**asdict(self.bar), "met": self.bar.met_by(self.median)},
        }


@dataclass(frozen=True)
class Usage:
    """What the timed part of a case used.

    Attributes:
        seconds: how long it took.
        transfers: how many were completed, by the shards' own count (else by the client's).
        syncs: of all shards' logs.
        log_bytes: by which the used part of all logs grew.
        disk_bytes: by which the files of all shards grew, log and state together.
        cpu_s: processor seconds by process, such as `router-1`; `client` is this one.
        rss_anon_bytes: the most anonymous resident memory seen, by process.
        longest_turn_ms: of each process's event loop since it started, where it tells.
        turn_before_ms: the same before the timed part: what is no longer was no longest turn of it.
        turn_cpu_ms: the most processor time of any turn since the process started.
        others_cpu_s: processor seconds that processes which are not ours used meanwhile: a quiet
            machine has next to none.
        stolen_cpu_s: what the host of a virtual machine took meanwhile.
        python_loop_ns: how fast the processor was for Python just before, see there.
    """

    seconds: float
    transfers: int
    syncs: int = 0
    log_bytes: int = 0
    disk_bytes: int = 0
    cpu_s: Mapping[str, float] = field(default_factory=dict)
    rss_anon_bytes: Mapping[str, int] = field(default_factory=dict)
    longest_turn_ms: Mapping[str, float] = field(default_factory=dict)
    turn_before_ms: Mapping[str, float] = field(default_factory=dict)
    turn_cpu_ms: Mapping[str, float] = field(default_factory=dict)
    others_cpu_s: float = 0.0
    stolen_cpu_s: float = 0.0
    python_loop_ns: float = 0.0

    def cpu_us_per_transfer(self) -> dict[str, float]:
        """Return processor microseconds for each transfer, by role: all routers together."""
        by_role: dict[str, float] = {}
        for process, seconds in self.cpu_s.items():
            role = process.partition("-")[0]
            by_role[role] = by_role.get(role, 0.0) + seconds * 1e6 / max(1, self.transfers)
        return by_role

    def to_json(self) -> dict[str, Any]:
        """Return it with what is derived from it."""
        return {
            **asdict(self),
            "syncs_per_s": self.syncs / self.seconds,
            "log_bytes_per_transfer": self.log_bytes / max(1, self.transfers),
            "disk_bytes_per_transfer": self.disk_bytes / max(1, self.transfers),
            "cpu_us_per_transfer": self.cpu_us_per_transfer(),
        }


@dataclass(frozen=True)
class Outcome:
    """What one case gave.

    Attributes:
        name: of the case.
        what: how the work was sent, in a few words.
        figures: at least one, the one that matters most first.
        usage: None where no cluster took part.
        notes: what a reader must know.
        skipped: why it was not run; "" = it was.
    """

    name: str
    what: str
    figures: Sequence[Figure] = ()
    usage: Usage | None = None
    notes: Sequence[str] = ()
    skipped: str = ""

    def figure(self, name: str) -> Figure:
        """Return a figure by name."""
        return next(figure for figure in self.figures if figure.name == name)

    def to_json(self) -> dict[str, Any]:
        """Return it whole."""
        return {
            "name": self.name,
            "what": self.what,
            "figures": [figure.to_json() for figure in self.figures],
            "usage": None if self.usage is None else self.usage.to_json(),
            "notes": list(self.notes),
            "skipped": self.skipped,
        }
