"""Every table of mutants there is. A new rig's table gets its line in `TABLES`.

A table is a sequence of `mutant.Mutant`. Whoever plants mistakes by exchanging parts inside a rig
lists them with the rig that is green once it has noticed (see `crossing` for those of the
simulation); whoever has the source rewritten uses `mutant.planted`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from tests.mutants import crossing, durability, ledger, memory, serving, streams

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from tests.mutants.mutant import Mutant

TABLES: Final[Mapping[str, Iterable[Mutant]]] = {
    "ledger": ledger.MUTANTS,
    "durability": durability.MUTANTS,
    "memory": memory.MUTANTS,
    "crossing": crossing.MUTANTS,
    "serving": serving.MUTANTS,
    "streams": streams.MUTANTS,
}
"""By where they are written down."""

# Whatever is changed in these tables, mistakes of these kinds are among them.
THE_TWELVE: Final = frozenset(
    {
        "acknowledge before sync",
        "skip one dedupe after restart",
        "off by one at an hour's edge",
        "wrong prefix sum after a period split",
        "apply one leg",
        "ignore EIO",
        "reuse a sequence number",
        "stale topology accepted",
        "clock backwards",
        "checkpoint that misses a dirty row",
        "abort forgotten",
        "hash not checked",
    }
)


def mutants() -> list[Mutant]:
    """All of them, table by table."""
    return [each for table in TABLES.values() for each in table]
