"""Hypothesis, as all of our property tests use it: replayed by the run's seed alone."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import hypothesis
from hypothesis.stateful import run_state_machine_as_test

from tests.support import SHRINK_VARIABLE

if TYPE_CHECKING:
    from hypothesis.stateful import RuleBasedStateMachine


def settings(examples: int, steps: int = 50) -> hypothesis.settings:
    """So many examples, of so many steps each where they have steps.

    A failing one is made small, which takes a while, unless the environment says not to.
    """
    phases = [hypothesis.Phase.generate]
    if os.environ.get(SHRINK_VARIABLE) != "0":
        phases.append(hypothesis.Phase.shrink)
    return hypothesis.settings(
        max_examples=examples,
        deadline=None,  # it would judge by the wall clock of a busy machine
        stateful_step_count=steps,
        database=None,  # the seed alone replays it
        report_multiple_bugs=False,
        suppress_health_check=list(hypothesis.HealthCheck),  # they judge by the wall clock
        phases=phases,
    )


def run_machine(machine: type[RuleBasedStateMachine], seed: int, examples: int, steps: int) -> None:
    """Drives a state machine under a seed."""
    seeded = hypothesis.seed(seed)(type(f"Seeded{machine.__name__}", (machine,), {}))
    run_state_machine_as_test(seeded, settings=settings(examples, steps))
