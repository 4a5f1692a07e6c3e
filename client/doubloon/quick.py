"""Makes frozen dataclasses quickly, where a batch has thousands of them.

The `__init__` of a frozen dataclass sets each field by name through `object.__setattr__`, which
takes three times as long as plain assignments. So the object begins as a *draft*, of a class with
the same slots that is not frozen, and then changes its class for good. Nobody else ever sees it as
a draft.
"""

from collections.abc import Callable
from dataclasses import MISSING, field, fields, make_dataclass
from typing import Any, ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")


def maker_of(kind: Callable[P, T]) -> Callable[P, T]:
    """Return a function that makes what a class makes, from the same arguments.

    Args:
        kind: a frozen dataclass with slots and no `__post_init__`.
    """
    assert not hasattr(kind, "__post_init__"), "it would not be called"
    known: Any = kind
    slots: list[tuple[str, Any, Any]] = [
        (each.name, each.type, _default_of(each)) for each in fields(known)
    ]
    draft = make_dataclass(f"Draft{known.__name__}", slots, slots=True)

    def make(*args: P.args, **kwargs: P.kwargs) -> T:
        made: Any = draft(*args, **kwargs)
        made.__class__ = kind
        return made  # type: ignore[no-any-return] # by now it is one

    return make


def _default_of(known: Any) -> Any:
    if known.default is not MISSING:
        return field(default=known.default)
    if known.default_factory is not MISSING:
        return field(default_factory=known.default_factory)
    return field()
