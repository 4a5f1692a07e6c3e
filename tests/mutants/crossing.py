"""Mistakes in two-phase commit, on either side, and in clearing."""

from __future__ import annotations

from typing import Final

from tests.mutants.mutant import Edit, Mutant, Promise, Rig, found_by, planted
from tests.simulation.mutants import MUTANTS as SIMULATED
from tests.simulation.test_mutants import NEEDS_A_PLAN

PARTICIPANT: Final = "shard_node/participant.py"
TWO_PHASE: Final = "coordinator/two_phase.py"
RECOVERY: Final = "coordinator/recovery.py"
CLEARING: Final = "shard_node/clearing.py"
STATEFUL: Final = found_by("unit/test_participant_stateful.py", quick=False)

SHARDS: Final = (
    planted(
        "abort forgotten",
        Promise.ATOMICITY,
        found_by("unit/test_participant.py"),
        Edit(
            PARTICIPANT,
            "        self._transactions.end(transaction_id, deadline_us, 0, now_us)\n",
            "        self._transactions.prepared.pop(transaction_id, None)\n",
        ),
        of_the_twelve=True,
    ),
    planted(
        "a reservation is not released on abort",
        Promise.BOUNDED,
        found_by("unit/test_participant.py"),
        Edit(
            PARTICIPANT,
            "        if prepared := self._transactions.prepared.get(transaction_id):\n"
            "            release(self._memory, prepared.reservations)\n"
            "        self._transactions.end(",
            "        self._transactions.end(",
        ),
    ),
    planted(
        "a participant prepares at its deadline",
        Promise.ATOMICITY,
        found_by("unit/test_participant_edges.py"),
        Edit(
            PARTICIPANT,
            "        if table.ended(header.transaction_id) is not None "
            "or header.deadline_us <= now_us:\n",
            "        if table.ended(header.transaction_id) is not None "
            "or header.deadline_us < now_us:\n",
        ),
    ),
    planted(
        "a home commits at its deadline",
        Promise.ATOMICITY,
        found_by("unit/test_participant_edges.py"),
        Edit(
            PARTICIPANT,
            "        is_over = table.ended(header.transaction_id) is not None "
            "or header.deadline_us <= now_us\n",
            "        is_over = table.ended(header.transaction_id) is not None "
            "or header.deadline_us < now_us\n",
        ),
    ),
    planted(
        "a home gives up before the deadline",
        Promise.ATOMICITY,
        found_by("unit/test_participant_edges.py"),
        Edit(
            PARTICIPANT,
            "        if deadline_us > self._block.stamp_us or transaction_id in",
            "        if deadline_us > self._block.stamp_us + 1 or transaction_id in",
        ),
    ),
    planted(
        "a home does not look whether the attempt has ended",
        Promise.ATOMICITY,
        found_by("unit/test_participant.py"),
        Edit(
            PARTICIPANT,
            "        is_over = table.ended(header.transaction_id) is not None or header",
            "        is_over = header",
        ),
    ),
    planted(
        "a home does not look for the key",
        Promise.EXACTLY_ONCE,
        found_by("unit/test_participant_keys.py"),
        Edit(
            PARTICIPANT,
            "        if sequence is not None:\n            return self._answer_known(request,",
            "        if sequence == 0:\n            return self._answer_known(request,",
        ),
    ),
    planted(
        "what ended is forgotten by a restart",
        Promise.ATOMICITY,
        STATEFUL,
        Edit(
            "shard_node/startup.py",
            "        recall_ended(ledger, store.log, checkpoint)\n",
            "",
        ),
    ),
    planted(
        "what ended is forgotten at its deadline",
        Promise.ATOMICITY,
        found_by("unit/test_transaction_table.py"),
        Edit(
            "shard_node/transactions.py",
            "        self._ended.add(transaction_id, until_us + REMEMBERED_US, decided_us)\n",
            "        self._ended.add(transaction_id, until_us, decided_us)\n",
        ),
    ),
    planted(
        "the table of what is prepared has no bound",
        Promise.BOUNDED,
        found_by("unit/test_participant.py"),
        Edit(
            PARTICIPANT,
            "        if verdict.busy or not room or len(table.prepared) >= PREPARED_MAX:\n",
            "        if verdict.busy or not room or len(table.prepared) >= 2 * PREPARED_MAX:\n",
        ),
    ),
    planted(
        "a reservation covers only what the group leaves in the end",
        Promise.NO_OVERDRAFT,
        found_by(
            "unit/test_groups.py::"
            "test_whatever_is_accepted_beside_it_what_is_prepared_can_be_posted"
        ),
        Edit(
            "shard_node/legs.py",
            "        courses[place] = leg, now, min(lowest, now), max(highest, now)\n",
            "        courses[place] = leg, now, min(now, 0), max(now, 0)\n",
        ),
    ),
    planted(
        "a single leg reserves on the wrong side",
        Promise.NO_OVERDRAFT,
        found_by("unit/test_participant.py::test_what_a_participant_posts"),
        Edit(
            "shard_node/legs.py",
            "(0, leg.amount_minor) if leg.incoming else (leg.amount_minor, 0)",
            "(leg.amount_minor, 0) if leg.incoming else (0, leg.amount_minor)",
        ),
    ),
    planted(
        "clearing sign wrong",
        Promise.CONSERVATION,
        STATEFUL,
        Edit(
            "shard_node/posting.py",
            "(leg.peer, leg.currency), -leg.signed_minor, decided_us)\n",
            "(leg.peer, leg.currency), leg.signed_minor, decided_us)\n",
        ),
    ),
    planted(
        "clearing counts by the time of posting",
        Promise.CONSERVATION,
        found_by("unit/test_clearing.py", "unit/test_crossing_service.py"),
        Edit(
            "shard_node/posting.py",
            "(leg.peer, leg.currency), -leg.signed_minor, decided_us)\n",
            "(leg.peer, leg.currency), -leg.signed_minor, time_us)\n",
        ),
    ),
    planted(
        "an audit counts its own second",
        Promise.CONSERVATION,
        found_by("unit/test_clearing.py"),
        Edit(CLEARING, " if each < second]\n", " if each <= second]\n"),
    ),
)
"""The shards' half."""

COORDINATORS: Final = (
    planted(
        "COMPLETED is said before every participant has posted",
        Promise.LINEARIZABILITY,
        found_by("unit/test_two_phase.py"),
        Edit(
            TWO_PHASE,
            "        if len(self._awaited) > 1:\n            self._go(_EVENT_POSTED, state)\n",
            "        if len(self._awaited) > 2:\n            self._go(_EVENT_POSTED, state)\n",
        ),
    ),
    planted(
        "ABORT is sent though the home may have committed",
        Promise.ATOMICITY,
        found_by("unit/test_two_phase.py"),
        Edit(
            TWO_PHASE,
            "                return (Answer(NOT_KNOWN_IN_TIME),)\n",
            "                return Answer(NOT_KNOWN_IN_TIME), *self._abort()\n",
        ),
    ),
    planted(
        "a definite fault is said though the home may have committed",
        Promise.EXACTLY_ONCE,
        found_by("unit/test_two_phase.py"),
        Edit(
            TWO_PHASE,
            "                return (Answer(NOT_KNOWN_IN_TIME),)\n",
            "                return (Answer(NOT_IN_TIME),)\n",
        ),
    ),
    planted(
        "a participant that was not reached is not told to abort",
        Promise.BOUNDED,
        found_by("unit/test_two_phase.py"),
        Edit(
            TWO_PHASE,
            "        return self._count_vote(_EVENT_UNREACHED, shard, undecidable=True)\n",
            "        held = tuple(each for each in self._held if each != shard)\n"
            "        return self._count_vote(_EVENT_UNREACHED, shard, held, undecidable=True)\n",
        ),
    ),
    planted(
        "the sweep aborts what its home has not decided",
        Promise.ATOMICITY,
        found_by("unit/test_recovery.py"),
        Edit(
            RECOVERY,
            "            elif fate == Fate.ABORTED:\n                steps.abort",
            "            else:\n                steps.abort",
        ),
    ),
    planted(
        "a decision is forgotten once one participant has posted",
        Promise.ATOMICITY,
        found_by("unit/test_recovery.py"),
        Edit(
            RECOVERY,
            "        if all(transaction_id in posted_ids",
            "        if any(transaction_id in posted_ids",
        ),
    ),
)
"""The coordinators' half."""


# Some of the schedules in which the simulation looks for its own mistakes, without any.
RIGHT_SCHEDULES: Final = Rig(
    ("-m", "tests.simulation", "--schedules", "200", "--seed", "0", "--jobs", "1"), is_quick=False
)


def _simulated() -> tuple[Mutant, ...]:
    """Those that the simulation of shards and coordinators plants in its own parts."""
    file = "simulation/test_mutants.py"
    tests = dict.fromkeys(SIMULATED, "test_chance_notices[{name}]")
    tests[NEEDS_A_PLAN] = "test_plans_notice"
    return tuple(
        Mutant(
            f"2PC: {name}",
            Promise.ATOMICITY,
            found_by(f"{file}::{test.format(name=name)}", quick=False),
            right=RIGHT_SCHEDULES,
        )
        for name, test in tests.items()
    )


MUTANTS: Final = (*SHARDS, *COORDINATORS, *_simulated())
