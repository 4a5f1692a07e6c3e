"""Mistakes in what memory keeps and lets go of, and in what a checkpoint leaves of it."""

from __future__ import annotations

from typing import Final

from tests.mutants.mutant import Edit, Promise, found_by, planted

MEMORY: Final = "shard_node/memory.py"
TABLE: Final = "shard_node/account_table.py"
RECORDS: Final = "shard_node/records.py"
ROWS: Final = "shard_node/rows.py"
STATE: Final = "shard_node/state.py"

MUTANTS: Final = (
    planted(
        "checkpoint that misses a dirty row",
        Promise.AGGREGATES,
        found_by("unit/test_chunking.py::test_a_checkpoint_has_what_its_very_first_record_changed"),
        Edit(
            MEMORY,
            "            if not balance.first_sequence "
            "or balance.last_sequence < self.first_sequence:\n",
            "            if not balance.first_sequence "
            "or balance.last_sequence <= self.first_sequence:\n",
        ),
        of_the_twelve=True,
    ),
    planted(
        "an account's row is missed when its change is a checkpoint's first",
        Promise.AGGREGATES,
        found_by("unit/test_chunking.py::test_a_checkpoint_has_what_its_very_first_record_changed"),
        Edit(
            MEMORY,
            "        if account.changed_sequence >= self.first_sequence:\n",
            "        if account.changed_sequence > self.first_sequence:\n",
        ),
    ),
    planted(
        "a row shows what came after its checkpoint",
        Promise.AGGREGATES,
        found_by(
            "unit/test_chunking.py::test_what_changes_while_a_checkpoint_is_taken_is_not_in_it"
        ),
        Edit(
            MEMORY,
            "        if self._draft is not None:\n"
            "            self._draft.about_to_change(account)\n",
            "",
        ),
    ),
    planted(
        "an account that changes behind a checkpoint is taken by it again",
        Promise.AGGREGATES,
        found_by(
            "unit/test_chunking.py::test_what_changes_while_a_checkpoint_is_taken_is_not_in_it"
        ),
        Edit(
            MEMORY,
            "        account.taken_epoch = self.epoch\n",
            "",
        ),
    ),
    planted(
        "an account that was pushed out stays out when it changes",
        Promise.AGGREGATES,
        found_by(
            "unit/test_chunking.py::test_an_account_pushed_out_is_back_once_it_changes_or_is_pinned"
        ),
        Edit(
            TABLE,
            "            account.cached = False\n",
            "",
        ),
    ),
    planted(
        "who was put further on is not found once the place before is empty",
        Promise.AGGREGATES,
        found_by("unit/test_account_table.py::test_random_changes"),
        Edit(
            TABLE,
            "        if ((slot - _home(account, last)) & last) >= ((slot - gap) & last):\n",
            "        if ((slot - _home(account, last)) & last) > ((slot - gap) & last):\n",
        ),
    ),
    planted(
        "who was at home is moved before it",
        Promise.AGGREGATES,
        found_by("unit/test_account_table.py::test_random_changes"),
        Edit(
            TABLE,
            "        if ((slot - _home(account, last)) & last) >= ((slot - gap) & last):\n",
            "        if account is not part[gap]:\n",
        ),
    ),
    planted(
        "periods that ended after a checkpoint began are forgotten with it",
        Promise.AGGREGATES,
        found_by(
            "unit/test_chunking.py::test_what_changes_while_a_checkpoint_is_taken_is_not_in_it"
        ),
        Edit(
            MEMORY,
            "            del balance.closed[:dropped]\n",
            "            balance.closed.clear()\n",
        ),
    ),
    planted(
        "a slice that ends within an account's ended periods is its last",
        Promise.AGGREGATES,
        found_by("unit/test_chunking.py::test_ended_periods_are_taken_and_forgotten_in_slices"),
        Edit(
            MEMORY,
            "        if last < end:\n",
            "        if last > end:\n",
        ),
    ),
    planted(
        "an account comes with its first currency alone",
        Promise.AGGREGATES,
        found_by("contract/test_state.py::test_an_account_comes_with_its_balance_in_each_currency"),
        Edit(
            "shard_node/state.py",
            "            more = balances.next()\n        return account\n",
            "            more = False\n        return account\n",
        ),
    ),
    planted(
        "a scrub looks for what is current among what has ended",
        Promise.TAMPER_EVIDENCE,
        found_by("contract/test_scrub.py::test_what_is_whole_is_read_to_its_end", quick=False),
        Edit(
            "shard_node/scrubbing.py",
            "    if current[:2] <= (time_us, sequence):\n",
            "    if current[:2] < (time_us, sequence):\n",
        ),
    ),
    planted(
        "an account leaves memory before the state has it",
        Promise.AGGREGATES,
        found_by(
            "unit/test_chunking.py::"
            "test_what_no_checkpoint_has_stays_in_memory_however_small_that_is"
        ),
        Edit(
            TABLE,
            "account.touched_epoch > committed_epoch:\n",
            "account.touched_epoch > committed_epoch + 1:\n",
        ),
    ),
    planted(
        "an account with reservations leaves memory",
        Promise.NO_OVERDRAFT,
        found_by("unit/test_participant_stateful.py", quick=False),
        Edit(
            TABLE,
            "            if account is None or account.pins or account.touched_epoch",
            "            if account is None or account.touched_epoch",
        ),
    ),
    planted(
        "a transaction that has ended stays in the state",
        Promise.AGGREGATES,
        found_by("unit/test_participant_stateful.py", quick=False),
        Edit(
            "shard_node/transactions.py",
            " = dict.fromkeys(self._gone)\n",
            " = {}\n",
        ),
    ),
    planted(
        "skip one dedupe after restart",
        Promise.EXACTLY_ONCE,
        found_by("unit/test_chunking.py::test_every_key_is_known_after_every_restart"),
        Edit(
            "shard_node/replaying.py",
            "    memory.add_key(record[:KEY_BYTES], sequence)\n",
            "    if sequence != block.first_sequence:\n"
            "        memory.add_key(record[:KEY_BYTES], sequence)\n",
        ),
        of_the_twelve=True,
    ),
    planted(
        "the last key of a checkpoint is not written",
        Promise.EXACTLY_ONCE,
        found_by("contract/test_state.py::test_keys_are_found_near_each_other_and_far_apart"),
        Edit(
            ROWS,
            "        yield key_rows(block.draft)\n",
            "        yield key_rows(block.draft)[:-1]\n",
        ),
    ),
    planted(
        "keys that do not tell their time are not written",
        Promise.EXACTLY_ONCE,
        found_by("contract/test_state.py::test_keys_are_found_however_their_ids_were_made"),
        Edit(
            "shard_node/putting.py",
            "            scattered += rows\n",
            "            scattered = rows\n",
        ),
    ),
    planted(
        "keys are numbered without the records between them",
        Promise.EXACTLY_ONCE,
        found_by(
            "contract/test_state.py::test_records_that_are_no_transfers_have_no_key",
            "unit/test_chunking.py",
        ),
        Edit(
            RECORDS,
            'sequence.to_bytes(8, "little")))\n        sequence += 1\n',
            'sequence.to_bytes(8, "little")))\n            sequence += 1\n',
        ),
    ),
    planted(
        "a scan of keys stops before the highest",
        Promise.EXACTLY_ONCE,
        found_by("contract/test_state.py::test_keys_are_found_near_each_other_and_far_apart"),
        Edit(STATE, "            if key > highest:\n", "            if key >= highest:\n"),
    ),
    planted(
        "a transaction that has ended stays in the state's file",
        Promise.AGGREGATES,
        found_by("unit/test_chunking.py::test_a_file_has_the_rows_that_memory_has"),
        Edit(
            STATE,
            "                    txn.delete(key, db=self.transactions)\n",
            "                    pass\n",
        ),
    ),
)
"""What memory lets go of, and what the state has."""
