"""What processes log becomes part of the trace."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import structlog

from tests.whole_cluster.loop import LIFE

if TYPE_CHECKING:
    from collections.abc import Iterator, MutableMapping
    from typing import NoReturn

    from tests.whole_cluster.world import World

MEASURED = frozenset({"seconds"})
"""What is measured by a real clock, and so differs from run to run."""


@contextmanager
def into(world: World) -> Iterator[None]:
    """Has every log line of a process noted, for as long as the context lasts."""

    def note(_: object, method: str, event: MutableMapping[str, Any]) -> NoReturn:
        life = LIFE.get()
        if method not in {"debug", "info"}:
            fields = {name: value for name, value in event.items() if name not in MEASURED}
            world.note(f"{life.name if life else 'world'} logs {fields}")
        raise structlog.DropEvent

    before = structlog.get_config()
    structlog.configure(processors=[note], cache_logger_on_first_use=False)
    try:
        yield
    finally:
        structlog.configure(**before)
