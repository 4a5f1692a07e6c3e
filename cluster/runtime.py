"""How a process lives and ends: loop, signals, exit codes, the fatal way out, the stall monitor.

Exit codes: 0 after a clean stop, 1 after an unexpected exception, 2 for bad options or a refusal to
start, 70 when `fatal` ended the process because going on would have been wrong.
"""

import asyncio
import gc
import os
import signal
import sys
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import NoReturn

import structlog
import uvloop

EXIT_OK = 0
EXIT_FAILED = 1
EXIT_REFUSED = 2
EXIT_FATAL = 70

# How often the monitor looks. 200 wake-ups a second cost about 0.2 % of a core.
MONITOR_PERIOD_S = 0.005

# What passes through has no cycles and lives for milliseconds, so the collector is in no hurry to
# look at what is young, and never looks at all that there is in one piece: 40 ms of the loop.
GC_THRESHOLDS = (50_000, 20, 1_000_000)

_LOG = structlog.stdlib.get_logger("runtime")


class StartRefused(Exception):  # noqa: N818 - it says what happened
    """The process must not start as it was asked to; the message says what to change."""


def run(main: Callable[[asyncio.Event], Awaitable[None]]) -> NoReturn:
    """Run `main(stop)` on uvloop and exit the process with the code that fits.

    `stop` is set by SIGINT or SIGTERM; `main` then finishes what it has begun and returns. A second
    signal ends the process at once, by the signal's own default action.
    """
    if not __debug__:
        sys.exit("refusing to start under python -O: the assertions guard the ledger")
    sys.exit(uvloop.run(_run(main)))


async def _run(main: Callable[[asyncio.Event], Awaitable[None]]) -> int:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()

    def asked_to_stop(number: signal.Signals) -> None:
        _LOG.info("stopping", signal=number.name)
        stop.set()
        loop.remove_signal_handler(number)
        signal.signal(number, signal.SIG_DFL)

    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, asked_to_stop, number)
    try:
        await main(stop)
    except StartRefused as refusal:
        _LOG.error("start_refused", reason=str(refusal))
        return EXIT_REFUSED
    except Exception:  # noqa: BLE001 - the last place that can say why the process ends
        _LOG.exception("failed")
        return EXIT_FAILED
    _LOG.info("stopped")
    return EXIT_OK


def fatal(reason: str, **details: object) -> NoReturn:
    """Log one critical line and end the process this instant, with no clean-up of any kind.

    For when memory and disk may disagree (a failed sync): whatever ran next could acknowledge what
    is not durable. The next start recovers from the log.
    """
    try:
        _LOG.critical("fatal", reason=reason, **details)
        sys.stderr.flush()
    finally:
        os._exit(EXIT_FATAL)


def collect_seldom() -> None:
    """Keep Python's collector from holding up a process that passes on what others keep.

    To be called once it is ready to serve; what its start left is never garbage.
    """
    gc.set_threshold(*GC_THRESHOLDS)
    gc.freeze()


def schedule_as_batch() -> None:
    """Have this process's threads wait for a core when they wake up, and push nobody off one.

    To be called before there are threads: they inherit it. For a process whose threads wake each
    other up for every call that passes through, see decision 0044. Linux only (sched(7),
    SCHED_BATCH); elsewhere, and where it is not allowed, nothing changes.
    """
    if not hasattr(os, "SCHED_BATCH"):
        return
    try:
        os.sched_setscheduler(0, os.SCHED_BATCH, os.sched_param(0))
    except OSError as error:
        _LOG.info("not_scheduled_as_batch", reason=str(error))


def anonymous_memory_bytes() -> int:
    """Return this process's anonymous resident memory; 0 where the system does not tell."""
    status = Path("/proc/self/status")
    if not status.exists():
        return 0
    for line in status.read_text(encoding="ascii").splitlines():
        if line.startswith("RssAnon:"):
            return int(line.split()[1]) * 1024
    return 0


class LoopMonitor:
    """Measures the longest time for which the event loop did not get round to a timer.

    A timer fires every `period_s`; the time between two firings is the most that any turn between
    them can have lasted. So a reading never understates a stall and overstates it by up to one
    period. It counts everything that holds the loop up: our code, another thread with the
    interpreter, the operating system. What our code alone does is told by `longest_turn_cpu_ms`.
    """

    def __init__(self, period_s: float = MONITOR_PERIOD_S) -> None:
        self._period_s = period_s
        self._handle: asyncio.TimerHandle | None = None
        self._wall_ns = 0
        self._cpu_ns = 0
        self._longest_ns = 0
        self._longest_cpu_ns = 0

    @property
    def longest_turn_ms(self) -> float:
        """The longest gap since the start or the last reset; up to a period is normal."""
        return self._longest_ns / 1e6

    @property
    def longest_turn_cpu_ms(self) -> float:
        """The most time that the loop's thread spent on a processor in any gap."""
        return self._longest_cpu_ns / 1e6

    def start(self) -> None:
        """Begin; call on the loop to be measured."""
        self._wall_ns, self._cpu_ns = time.perf_counter_ns(), time.thread_time_ns()
        self._handle = asyncio.get_running_loop().call_later(self._period_s, self._beat)

    def stop(self) -> None:
        """End; the readings stay."""
        if self._handle is not None:
            self._handle.cancel()
            self._handle = None

    def reset(self) -> None:
        """Forget the longest gap so far."""
        self._longest_ns = self._longest_cpu_ns = 0

    def _beat(self) -> None:
        wall_ns, cpu_ns = time.perf_counter_ns(), time.thread_time_ns()
        self._longest_ns = max(self._longest_ns, wall_ns - self._wall_ns)
        self._longest_cpu_ns = max(self._longest_cpu_ns, cpu_ns - self._cpu_ns)
        self._wall_ns, self._cpu_ns = wall_ns, cpu_ns
        self._handle = asyncio.get_running_loop().call_later(self._period_s, self._beat)
