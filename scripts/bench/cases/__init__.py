"""The cases, in the order in which they run: floors and peers first, for others refer to them."""

from scripts.bench.cases import (
    floors,
    growth,
    node,
    peers,
    questions,
    restart,
    sdk,
    sizes,
    unary,
)
from scripts.bench.cases.case import Case

ALL: tuple[Case, ...] = (
    *floors.CASES,
    *peers.CASES,
    *node.CASES,
    *sdk.CASES,
    *unary.CASES,
    *questions.CASES,
    *restart.CASES,
    *sizes.CASES,
    *growth.CASES,
)


def named(names: str) -> list[Case]:
    """Return the cases that a list such as `node,unary` names; "" = all that run by default.

    Raises:
        KeyError: there is no case of a name.
    """
    if not names:
        return [case for case in ALL if case.by_default]
    wanted = [name.strip() for name in names.split(",") if name.strip()]
    for name in wanted:
        if all(case.name != name for case in ALL):
            raise KeyError(name)
    return [case for case in ALL if case.name in wanted]
