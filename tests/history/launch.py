"""`python -m tests.history.launch BUG ROOM …`: runs a room's `__main__`, perhaps with a bug in it.

What a process gets wrong on purpose is done to it here, before it starts, and nowhere in the
product: there is no switch for it that anybody could leave on. `-` = no bug.
"""

import runpy
import sys
import threading
import time


def main() -> None:
    """Plants the bug and runs the room."""
    _, bug, room, *arguments = sys.argv
    # Under libfaketime the system's sleep does not take the times that Python gives it.
    setattr(time, "sleep", _sleep)  # noqa: B010 - an assignment would promise more than it takes
    if bug != "-":
        from tests.history.mutants import MUTANTS  # noqa: PLC0415 - it takes every room with it

        MUTANTS[bug].install()
    sys.argv = [room, *arguments]
    runpy.run_module(room, run_name="__main__", alter_sys=True)


def _sleep(seconds: float) -> None:
    threading.Event().wait(seconds)


if __name__ == "__main__":
    main()
