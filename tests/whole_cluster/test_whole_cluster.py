"""The promises hold in whole clusters under faults, and a seed is a trace wherever it is played."""

import os
import subprocess
import sys
from collections import Counter

import pytest

from tests.support import ROOT
from tests.whole_cluster.mutants import MUTANTS, Mutant
from tests.whole_cluster.scenario import play

CLUSTERS = 25
MUTANT_CLUSTERS_MAX = 80
"""The rarest mistake is noticed in one cluster of ten or so."""

HASHES = "from tests.whole_cluster.scenario import play; print(play({seed}, brief=True).trace_hash)"


def test_promises_hold(seed: int) -> None:
    counts: Counter[str] = Counter()
    for each in range(seed, seed + CLUSTERS):
        counts += play(each, brief=True).counts
    assert counts["answered COMPLETED"], "hardly anything happens in them"


def test_a_seed_is_a_trace(seed: int) -> None:
    here = play(seed, brief=True).trace_hash
    assert play(seed, brief=True).trace_hash == here
    assert play(seed + 1, brief=True).trace_hash != here
    # Another process hashes strings otherwise: what is in sets may come in another order.
    other = str(1 + int(os.environ.get("PYTHONHASHSEED", "0").replace("random", "0")))
    there = subprocess.run(
        [sys.executable, "-c", HASHES.format(seed=seed)],
        env={**os.environ, "PYTHONHASHSEED": other},
        cwd=ROOT,
        check=True,
        capture_output=True,
        text=True,
    )
    assert there.stdout.split() == [here]


@pytest.mark.parametrize("mutant", MUTANTS, ids=[each.name for each in MUTANTS])
def test_mistakes_are_noticed(mutant: Mutant) -> None:
    with mutant.planted():
        assert any(is_noticed(seed) for seed in range(MUTANT_CLUSTERS_MAX))


def is_noticed(seed: int) -> bool:
    try:
        play(seed, brief=True)
    except Exception:  # noqa: BLE001 - a mistake may also show as a process that fails
        return True
    return False
