"""Mistakes in what the ledger decides, adds up and answers."""

from __future__ import annotations

from typing import Final

from tests.mutants.mutant import Edit, Promise, found_by, planted

LEDGER: Final = "shard_node/ledger.py"
BOOKS: Final = "shard_node/books.py"
LEGS: Final = "shard_node/legs.py"
HOURS: Final = "shard_node/hours.py"
QUERIES: Final = "shard_node/queries.py"
SERVICE: Final = "shard_node/service.py"

# The beginning of `Balance.post_incoming`, which goes on like that of its counterpart.
INCOMING: Final = (
    '        """Adds an entry that pays the account. It was checked before; it cannot fail."""\n'
    "        if (\n"
    "            time_us >= self.hour_end_us\n"
)

DECISIONS: Final = (
    planted(
        "apply one leg",
        Promise.CONSERVATION,
        found_by("unit/test_ledger_conservation.py::test_sums_are_zero_after_every_block"),
        Edit(
            LEDGER,
            "        paid.post_incoming(amount, destination_minor, sequence, destination_us)\n"
            "        self.counts.completed += 1\n",
            "        self.counts.completed += 1\n",
        ),
        of_the_twelve=True,
    ),
    planted(
        "a balance may pass what it can hold",
        Promise.NO_OVERDRAFT,
        found_by(
            "unit/test_ledger_conservation.py::test_floors_and_caps_are_inclusive",
            "unit/test_ledger_conservation.py::test_a_balance_never_passes_what_it_can_hold",
        ),
        Edit(
            LEDGER,
            "        if paid.minor > most_before:\n",
            "        if destination.cap_minor < BALANCE_MAX_MINOR and paid.minor > most_before:\n",
        ),
    ),
    planted(
        "the floor is exclusive",
        Promise.CONTRACT,
        found_by("unit/test_ledger_conservation.py::test_floors_and_caps_are_inclusive"),
        Edit(
            LEDGER,
            "        if source_minor < source.floor_minor:\n",
            "        if source_minor <= source.floor_minor:\n",
        ),
    ),
    planted(
        "a destination that is frozen is paid",
        Promise.CONTRACT,
        found_by("unit/test_ledger_refusals.py::test_of_two_reasons_the_higher_is_answered"),
        Edit(
            LEDGER,
            "if source.status != STATUS_ACTIVE or destination.status != STATUS_ACTIVE:",
            "if source.status != STATUS_ACTIVE or destination.status == STATUS_CLOSED:",
        ),
    ),
    planted(
        "a group ignores caps",
        Promise.NO_OVERDRAFT,
        found_by("unit/test_groups.py"),
        Edit(
            LEGS,
            "        if minor > cap_minor:\n",
            "        if minor > 2 * cap_minor:\n",
        ),
        Edit(
            LEGS,
            "_IS_BUSY if minor + balance.reserved_incoming > cap_minor",
            "_IS_BUSY if course + balance.reserved_incoming > cap_minor",
        ),
    ),
    planted(
        "a group is checked transfer by transfer, not as a whole",
        Promise.NO_OVERDRAFT,
        found_by("unit/test_groups.py"),
        Edit(
            LEGS,
            "        course = courses.get(place, 0) + leg.signed_minor\n",
            "        course = leg.signed_minor\n",
        ),
    ),
    planted(
        "what is reserved may be spent",
        Promise.NO_OVERDRAFT,
        found_by(
            "unit/test_participant_refusals.py::test_what_only_reservations_forbid_is_busy_and_never_recorded"
        ),
        Edit(
            LEDGER,
            "            source_minor - paying.reserved_outgoing < source.floor_minor\n",
            "            source_minor < source.floor_minor\n",
        ),
    ),
    planted(
        "a refusal is not recorded",
        Promise.EXACTLY_ONCE,
        found_by(
            "unit/test_ledger_refusals.py::test_a_refusal_changes_nothing_else_and_every_retry_hears_the_same"
        ),
        Edit(
            LEDGER,
            "        members = [Member(body, self.log_id, self.log_id, metadata)]\n",
            "        return _refused(reason)\n"
            "        members = [Member(body, self.log_id, self.log_id, metadata)]\n",
        ),
    ),
    planted(
        "what stands in doubt is refused for good",
        Promise.EXACTLY_ONCE,
        found_by(
            "unit/test_participant_refusals.py::test_what_only_reservations_forbid_is_busy_and_never_recorded"
        ),
        Edit(
            LEDGER,
            "            return results.write(BUSY_RESULT)\n",
            "            reason = RefusalReason.INSUFFICIENT_FUNDS\n"
            "            return results.write(self._refuse(reason, body, metadata))\n",
        ),
    ),
    planted(
        "a key is looked for everywhere but in the checkpoint under way",
        Promise.EXACTLY_ONCE,
        found_by("unit/test_ledger_keys.py::test_a_key_is_known_wherever_its_record_is"),
        Edit(
            "shard_node/memory.py",
            "        return self.keys.get(key) or self.draft_keys.get(key)\n",
            "        return self.keys.get(key)\n",
        ),
    ),
    planted(
        "the last of the keys is taken for a new one",
        Promise.EXACTLY_ONCE,
        found_by("unit/test_ledger_keys.py::test_a_key_is_known_wherever_its_record_is"),
        Edit(
            "shard_node/key_table.py",
            "        if key > self._newest:\n            return",
            "        if key >= self._newest:\n            return",
        ),
    ),
    planted(
        "the last of the keys is the one that came last",
        Promise.EXACTLY_ONCE,
        found_by("unit/test_ledger_keys.py::test_a_key_is_known_in_whatever_order_they_came"),
        Edit(
            "shard_node/key_table.py",
            "        if key > self._newest:  # noqa: PLR1730 - `max` would be a call\n",
            "        if key:\n",
        ),
    ),
    planted(
        "groups do not look for their key in the checkpoint under way",
        Promise.EXACTLY_ONCE,
        found_by("unit/test_shard_stateful.py", quick=False),
        Edit(
            "shard_node/memory.py",
            "        if recent := self.find_recent(key):\n",
            "        if recent := self.keys.get(key):\n",
        ),
    ),
    planted(
        "a reused key's metadata is not compared",
        Promise.EXACTLY_ONCE,
        found_by("unit/test_ledger_keys.py::test_the_first_differing_field_is_named"),
        Edit(
            LEDGER,
            "        if known.bodies != body or known.metadata != metadata:\n",
            "        if known.bodies != body:\n",
        ),
    ),
    planted(
        "an account that holds money is closed",
        Promise.CONSERVATION,
        found_by("unit/test_ledger_conservation.py::test_status_changes"),
        Edit(
            LEDGER,
            "any(each.minor for each in account.balances.values())",
            "all(each.minor for each in account.balances.values())",
        ),
    ),
    planted(
        "imports are refused at an hour's shift, not beyond it",
        Promise.CONTRACT,
        found_by("unit/test_ledger_imports.py"),
        Edit(
            LEDGER,
            "- import_us > IMPORT_SHIFT_MAX_US:\n",
            "- import_us >= IMPORT_SHIFT_MAX_US:\n",
        ),
    ),
    planted(
        "an import is posted before the account's latest entry",
        Promise.AGGREGATES,
        found_by("unit/test_ledger_imports.py"),
        Edit(
            LEGS,
            "    return max(import_us, account.latest_time_us()) if import_us else stamp_us\n",
            "    return import_us or stamp_us\n",
        ),
    ),
)
"""What may happen, and what is remembered of it."""

SUMS: Final = (
    planted(
        "off by one at an hour's edge",
        Promise.AGGREGATES,
        found_by(
            "unit/test_books.py::test_a_period_begins_with_each_hour_and_after_128_entries",
            "unit/test_queries.py::test_a_series_is_a_fold_of_each_hour",
        ),
        Edit(
            BOOKS,
            "    return time_us - time_us % HOUR_US + HOUR_US\n",
            "    return time_us - time_us % HOUR_US + HOUR_US + 1\n",
        ),
        of_the_twelve=True,
    ),
    planted(
        "wrong prefix sum after a period split",
        Promise.AGGREGATES,
        found_by("unit/test_books.py::test_periods_are_the_sums_of_their_entries"),
        Edit(
            BOOKS,
            "        self.outgoing_before += self.outgoing\n",
            "        self.outgoing_before = self.outgoing\n",
        ),
        of_the_twelve=True,
    ),
    planted(
        "a period goes on past its entries",
        Promise.BOUNDED,
        found_by("unit/test_books.py::test_periods_are_the_sums_of_their_entries"),
        Edit(
            BOOKS,
            INCOMING
            + "            or self.incoming_count + self.outgoing_count >= PERIOD_ENTRIES_MAX\n",
            INCOMING + "            or self.incoming_count >= PERIOD_ENTRIES_MAX\n",
        ),
    ),
    planted(
        "lifetime sums are cut to 64 bits in the state",
        Promise.AGGREGATES,
        found_by("unit/test_books.py::test_a_periods_row_comes_back"),
        Edit(
            BOOKS,
            "        write_i64_le(writer, _signed(total >> 64))\n",
            "        write_i64_le(writer, 0)\n",
        ),
    ),
    planted(
        "an account's own balance is taken for that of another currency",
        Promise.CONSERVATION,
        found_by("unit/test_ledger_conservation.py"),
        Edit(
            BOOKS,
            "        if self.currency == currency:\n",
            "        if self.currency != _NO_CURRENCY:\n",
        ),
    ),
    planted(
        "an entry names the other account's previous one",
        Promise.AGGREGATES,
        found_by("unit/test_statements.py::test_a_statement_is_every_entry_in_order"),
        Edit(
            LEDGER,
            "            paying.last_sequence,\n            paid.last_sequence,\n",
            "            paid.last_sequence,\n            paying.last_sequence,\n",
        ),
    ),
    planted(
        "a total takes back an entry of its own instant",
        Promise.AGGREGATES,
        found_by("unit/test_queries.py::test_totals_are_a_fold"),
        Edit(
            QUERIES,
            "            if last_us <= instant_us:\n                break\n",
            "            if last_us < instant_us:\n                break\n",
        ),
    ),
    planted(
        "the period that begins at the instant is left out",
        Promise.AGGREGATES,
        found_by("unit/test_queries.py::test_totals_are_a_fold"),
        Edit(
            QUERIES,
            "self.period_before(instant_us + 1, 0) if instant_us > 0",
            "self.period_before(instant_us, 0) if instant_us > 0",
        ),
    ),
    planted(
        "a silent hour of a series shows the opening balance",
        Promise.AGGREGATES,
        found_by("unit/test_queries.py::test_a_series_is_a_fold_of_each_hour"),
        Edit(
            HOURS,
            "            hours.append(Hour(start_us, minor, 0, 0))\n",
            "            hours.append(Hour(start_us, before[0] - before[1], 0, 0))\n",
        ),
    ),
    planted(
        "a series shows the end of its last hour, not of its instant",
        Promise.AGGREGATES,
        found_by("unit/test_queries.py::test_a_series_is_a_fold_of_each_hour"),
        Edit(
            QUERIES,
            "        ends[last_hour_us] = self.totals_at(to_us).sums\n",
            "        ends.setdefault(last_hour_us, self.totals_at(to_us).sums)\n",
        ),
    ),
    planted(
        "a window of flows counts its beginning and not its end",
        Promise.AGGREGATES,
        found_by("unit/test_service.py::test_balances_flows_and_series"),
        Edit(
            SERVICE,
            "start, end = history.totals_at(max(0, from_us)), history.totals_at(to_us)\n",
            "start, end = history.totals_at(max(0, from_us - 1)), history.totals_at(to_us - 1)\n",
        ),
    ),
    planted(
        "a page's token skips an entry",
        Promise.CONTRACT,
        found_by("unit/test_statements.py::test_pages_of_every_size_make_the_same_statement"),
        Edit(QUERIES, "(at[0], at[1] + 1) if at", "(at[0], at[1] + 2) if at"),
    ),
    planted(
        "a statement ends with its last instant, not before it",
        Promise.CONTRACT,
        found_by("unit/test_statements.py::test_a_statement_is_every_entry_in_order"),
        Edit(
            QUERIES,
            "        if not request.from_us <= leg.time_us < request.to_us:\n",
            "        if not request.from_us <= leg.time_us <= request.to_us:\n",
        ),
        Edit(
            QUERIES,
            "    end = request.to_us, 0\n",
            "    end = min(request.to_us + 1, _END_OF_TIME_US), 0\n",
        ),
    ),
)
"""What is added up, and what is answered from it."""

MUTANTS: Final = (*DECISIONS, *SUMS)
