"""One target under a coverage-guided fuzzer: `python -m tests.hostile.guided NAME [OPTIONS]`.

`fuzz` starts it; by hand it takes libFuzzer's own options, and input files to try again. Our code
is instrumented as it is imported, so the targets are imported here and not above. The fuzzer's own
mutations take turns with ours, which know records and edges.
"""

from __future__ import annotations

import random
import sys

import atheris

from tests.hostile.mutate import mutate

INSTRUMENTED = ["cluster", "coordinator", "doubloon", "router", "scripts", "shard_node"]
PLAIN = ["doubloon.v1", "cluster.etcd", "cluster.etcd_membership"]
"""Generated code, and what no target reaches: to instrument it takes seconds."""


def main() -> None:
    """Fuzz until libFuzzer ends the process."""
    name = sys.argv.pop(1)
    with atheris.instrument_imports(include=INSTRUMENTED, exclude=PLAIN):
        from tests.hostile.targets import TARGETS  # noqa: PLC0415 - see the module
    target = TARGETS[name]
    seeds = target.seeds()

    def mutated(data: bytes, bytes_max: int, seed: int) -> bytes:
        rng = random.Random(seed)
        if rng.random() < 0.5:
            changed: bytes = atheris.Mutate(data, bytes_max)
            return changed
        return mutate(rng, [data, rng.choice(seeds)], target.stride)[:bytes_max]

    atheris.Setup(sys.argv, target.check, custom_mutator=mutated)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
