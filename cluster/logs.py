"""Structured logs: one line per start, stop, checkpoint, topology change and fault.

Modules call `structlog.stdlib.get_logger("name")` at import, which binds nothing, and processes
call `configure` once from `__main__`. Lines go to standard error, JSON or for people.
"""

import logging
import sys
from typing import Literal

import structlog

LogFormat = Literal["json", "human"]

# Without the frames' variables: they are long, and may hold what does not belong in logs.
_TRACEBACKS = structlog.processors.ExceptionRenderer(
    structlog.tracebacks.ExceptionDictTransformer(show_locals=False)
)


def configure(role: str, id: str, log_format: LogFormat, level: int = logging.INFO) -> None:  # noqa: A002 - the field's name
    """Set up logging for this process; every line names the role and the id."""
    render: structlog.types.Processor = (
        structlog.processors.JSONRenderer(sort_keys=False)
        if log_format == "json"
        else structlog.dev.ConsoleRenderer(colors=sys.stderr.isatty())
    )
    exception: tuple[structlog.types.Processor, ...] = (
        (_TRACEBACKS,) if log_format == "json" else ()
    )
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True, key="time"),
            *exception,
            render,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(level),
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
        cache_logger_on_first_use=True,
    )
    structlog.contextvars.bind_contextvars(role=role, id=id)
    # Libraries that speak through the standard module (asyncio, grpc) are heard from warnings up.
    logging.basicConfig(
        stream=sys.stderr, level=logging.WARNING, format="%(levelname)s %(name)s %(message)s"
    )
