"""Mistakes in what is durable, and what a start believes."""

from __future__ import annotations

from typing import Final

from tests.mutants.mutant import Edit, Promise, found_by, planted

COMMITTER: Final = "shard_node/committer.py"
ENGINE: Final = "shard_node/engine.py"
INSTANTS: Final = "shard_node/instants.py"
LOG: Final = "shard_node/log.py"
OPEN_BLOCK: Final = "shard_node/open_block.py"
RECORDS: Final = "shard_node/records.py"
STARTUP: Final = "shard_node/startup.py"
ROWS: Final = "shard_node/rows.py"
SCRUBBING: Final = "shard_node/scrubbing.py"

DURABLE: Final = (
    planted(
        "acknowledge before sync",
        Promise.DURABILITY,
        found_by(
            "unit/test_committer.py::test_nobody_is_let_go_before_the_append_returns",
            "unit/test_engine.py::test_an_answer_waits_for_its_append",
        ),
        Edit(
            COMMITTER,
            "            try:\n                await self._appender.append(",
            "            self.durable_sequence = blocks[-1].last_sequence\n"
            "            self._release()\n"
            "            try:\n                await self._appender.append(",
        ),
        of_the_twelve=True,
    ),
    planted(
        "ignore EIO",
        Promise.DURABILITY,
        found_by(
            "unit/test_committer.py::test_a_failed_append_is_fatal_and_lets_nobody_go",
            "unit/test_engine.py::test_a_failed_append_is_fatal_and_answers_nobody",
        ),
        Edit(
            COMMITTER,
            "                self._on_fatal(error)\n                return\n",
            "                del error\n",
        ),
        of_the_twelve=True,
    ),
    planted(
        "the checkpoint's error is ignored",
        Promise.DURABILITY,
        found_by("unit/test_engine.py::test_a_failed_checkpoint_is_fatal"),
        Edit(
            "shard_node/checkpoints.py",
            "                self._on_fatal(error)\n                raise\n",
            "                _LOG.warning('checkpoint_failed', error=str(error))\n",
        ),
    ),
    planted(
        "a question is answered from what is not durable",
        Promise.DURABILITY,
        found_by("unit/test_engine.py::test_a_read_of_what_is_not_durable_waits"),
        Edit(
            ENGINE,
            "            await self.committer.durable(sequence)\n"
            "            account = self.account(account_id)\n",
            "            account = self.account(account_id)\n",
        ),
    ),
    planted(
        "a transfer is told of before it is durable",
        Promise.DURABILITY,
        found_by("unit/test_engine.py::test_a_read_of_what_is_not_durable_waits"),
        Edit(
            ENGINE,
            "        await self.committer.durable(sequence)\n"
            "        record, metadata = read_outcome(",
            "        record, metadata = read_outcome(",
        ),
    ),
    planted(
        "the state runs ahead of the log",
        Promise.DURABILITY,
        found_by("unit/test_engine.py::test_a_checkpoint_does_not_run_ahead_of_the_log"),
        Edit(
            "shard_node/checkpoints.py",
            "        await self._committer.durable(draft.sequence)\n",
            "        self._committer.kick()\n",
        ),
    ),
    planted(
        "an instant that was answered for is posted at again",
        Promise.LINEARIZABILITY,
        found_by(
            "unit/test_engine.py::test_nothing_is_posted_at_or_before_an_instant_once_it_is_settled"
        ),
        Edit(
            INSTANTS,
            "        if self._ledger.block.stamp_us <= instant_us:\n",
            "        if self._ledger.block.stamp_us > instant_us:\n",
        ),
    ),
    planted(
        "what was promised is forgotten by who takes over",
        Promise.LINEARIZABILITY,
        found_by("unit/test_instants.py"),
        Edit(
            "shard_node/startup.py",
            "    return max(log.last.draft.time_us if log.last else 0, ledger.promised_us)\n",
            "    return log.last.draft.time_us if log.last else 0\n",
        ),
    ),
    planted(
        "a promise that a checkpoint covers is not recalled",
        Promise.LINEARIZABILITY,
        found_by("unit/test_instants.py"),
        Edit(
            "shard_node/ledger.py",
            "            if record[BODY_BYTES] == RecordKind.EPOCH_BEGAN:\n",
            "            if record[BODY_BYTES] == 0:\n",
        ),
    ),
    planted(
        "an answer does not wait for its promise",
        Promise.LINEARIZABILITY,
        found_by("unit/test_instants.py"),
        Edit(
            INSTANTS,
            "            self.promise_sequence = max(self.promise_sequence, waited_for)\n",
            "            assert waited_for\n",
        ),
    ),
    planted(
        "clock backwards",
        Promise.LINEARIZABILITY,
        found_by("unit/test_clock.py"),
        Edit(
            "cluster/clock.py",
            "        self._last_us = max(self._clock.now_us(), self._last_us + 1)\n",
            "        self._last_us = self._clock.now_us()\n",
        ),
        of_the_twelve=True,
    ),
    planted(
        "a peer's clock is followed however far it is ahead",
        Promise.LINEARIZABILITY,
        found_by("unit/test_clock.py"),
        Edit(
            "cluster/clock.py",
            "        if instant_us > self._clock.now_us() + self._ahead_max_us:\n",
            "        if instant_us > self._last_us + self._ahead_max_us:\n",
        ),
    ),
)
"""What may be said, and when."""

BELIEVED: Final = (
    planted(
        "the scrub walks without searching",
        Promise.TAMPER_EVIDENCE,
        found_by("contract/test_scrub.py::test_a_row_that_a_search_does_not_find_is_told"),
        Edit(
            SCRUBBING,
            "        if view.find(self.part, key) != value:\n",
            "        if view.find(self.part, key) not in (None, value):\n",
        ),
    ),
    planted(
        "the scrub takes an earlier row for today's",
        Promise.TAMPER_EVIDENCE,
        found_by("contract/test_scrub.py::test_an_earlier_row_that_was_true_once_is_found"),
        Edit(
            SCRUBBING,
            "        if sequence < period.last_sequence:\n            return\n",
            "        return\n",
        ),
    ),
    planted(
        "the scrub asks for blocks that no checkpoint covers",
        Promise.TAMPER_EVIDENCE,
        found_by("contract/test_scrub.py::test_nothing_that_happens_meanwhile_alarms_it"),
        Edit(
            SCRUBBING,
            "        if covered is None or block.number > covered.block:\n",
            "        if covered is None:\n",
        ),
    ),
    planted(
        "hash not checked",
        Promise.TAMPER_EVIDENCE,
        found_by("unit/test_records.py::test_every_changed_byte_is_found"),
        Edit(
            RECORDS,
            "    if _hash(value[:HEADER_BYTES], draft.records, draft.heap) != stored_hash:\n",
            "    if len(stored_hash) != HASH_BYTES:\n",
        ),
        of_the_twelve=True,
    ),
    planted(
        "a block need not name the hash of the one before",
        Promise.TAMPER_EVIDENCE,
        found_by("unit/test_records.py::test_what_breaks_a_chain", "unit/test_startup.py"),
        Edit(
            RECORDS,
            "    if block.previous_hash != (before.hash if before else GENESIS_HASH):\n",
            "    if before is None and block.previous_hash != GENESIS_HASH:\n",
        ),
    ),
    planted(
        "the heap is not part of the hash",
        Promise.TAMPER_EVIDENCE,
        found_by("unit/test_records.py::test_every_changed_byte_is_found"),
        Edit(RECORDS, "    digest.update(heap)\n", "    assert heap is not None\n"),
    ),
    planted(
        "a row's checksum does not cover its key",
        Promise.TAMPER_EVIDENCE,
        found_by("contract/test_state.py::test_a_row_in_anothers_place_is_found"),
        Edit(
            ROWS,
            "    return body + _CRC.pack(crc32(key + body))\n",
            "    return body + _CRC.pack(crc32(body))\n",
        ),
        Edit(
            ROWS,
            "    if len(value) < _CRC_BYTES or crc32(key + value) != _SEALED:\n",
            "    if len(value) < _CRC_BYTES or crc32(value) != _SEALED:\n",
        ),
    ),
    planted(
        "the state's block need not be the log's",
        Promise.TAMPER_EVIDENCE,
        found_by("unit/test_startup.py"),
        Edit(
            STARTUP,
            "    if (block.number, block.hash) != (checkpoint.block, checkpoint.block_hash):\n",
            "    if block.number != checkpoint.block:\n",
        ),
    ),
    planted(
        "blocks are replayed without looking whether they follow",
        Promise.TAMPER_EVIDENCE,
        found_by("unit/test_startup.py"),
        Edit(
            STARTUP,
            "        check_follows(before, block)\n        try:\n",
            "        try:\n",
        ),
    ),
    planted(
        "a state of another shard is believed",
        Promise.TAMPER_EVIDENCE,
        found_by("unit/test_startup.py"),
        Edit(
            STARTUP,
            "    if (checkpoint.cluster_id, checkpoint.shard_id) "
            "!= (identity.cluster_id, identity.shard_id):\n",
            "    if checkpoint.cluster_id != identity.cluster_id:\n",
        ),
    ),
    planted(
        "a log that breaks off is believed",
        Promise.TAMPER_EVIDENCE,
        found_by("unit/test_startup.py"),
        Edit(
            STARTUP,
            "    if last is not None and (before is None or before.hash != last.hash):\n",
            "    if last is not None and before is None:\n",
        ),
    ),
    planted(
        "reuse a sequence number",
        Promise.TAMPER_EVIDENCE,
        found_by("unit/test_chunking.py::test_two_ways_of_cutting_give_one_state"),
        Edit(
            OPEN_BLOCK,
            "        self.first_sequence = self.sequence + 1\n        self.records, self._heap",
            "        self.sequence -= draft.count > 1\n"
            "        self.first_sequence = self.sequence + 1\n"
            "        self.records, self._heap",
        ),
        of_the_twelve=True,
    ),
    planted(
        "a record of the open block is read from the wrong place",
        Promise.EXACTLY_ONCE,
        found_by("unit/test_records.py::test_the_open_block_is_read_while_it_is_written"),
        Edit(
            OPEN_BLOCK,
            "        place = bisect_right(self._chunk_sequences, sequence) - 1\n",
            "        place = bisect_right(self._chunk_sequences, sequence - 1) - 1\n",
        ),
    ),
    planted(
        "an epoch that is over writes on",
        Promise.SINGLE_WRITER,
        found_by("contract/test_log.py::test_an_epoch_that_is_over_cannot_write"),
        Edit(
            LOG,
            "        if self.last is not None and self.last.epoch > epoch and not read_only:\n",
            "        if self.last is not None and epoch < 1 and not read_only:\n",
        ),
    ),
    planted(
        "a block of an older epoch may follow",
        Promise.SINGLE_WRITER,
        found_by("unit/test_records.py::test_what_breaks_a_chain"),
        Edit(
            RECORDS,
            "(block.epoch < before.epoch or block.draft.time_us <= before.draft.time_us)",
            "(block.draft.time_us <= before.draft.time_us)",
        ),
    ),
)
"""What a start, and a reader, believe."""

MUTANTS: Final = (*DURABLE, *BELIEVED)
