"""Mistakes on the way of a call: routers, admission, topology, the SDK."""

from __future__ import annotations

from typing import Final

from tests.mutants.mutant import Edit, Promise, found_by, planted

ENGINE: Final = "shard_node/engine.py"
TRANSFERS: Final = "router/transfers.py"
OF_ENGINE: Final = "unit/test_engine.py"
BATCHES: Final = "client/doubloon/batches.py"

MUTANTS: Final = (
    planted(
        "stale topology accepted",
        Promise.SINGLE_WRITER,
        found_by("unit/test_service.py::test_a_call_for_another_is_refused_with_the_own_version"),
        Edit(
            "shard_node/service.py",
            "        if target.get(SHARD_KEY) != shard_id "
            "or target.get(TOPOLOGY_VERSION_KEY) != str(own):\n",
            "        if target.get(SHARD_KEY) != shard_id:\n",
        ),
        of_the_twelve=True,
    ),
    planted(
        "another shard's call is executed",
        Promise.SINGLE_WRITER,
        found_by("unit/test_service.py::test_a_call_for_another_is_refused_with_the_own_version"),
        Edit(
            "shard_node/service.py",
            "        if target.get(SHARD_KEY) != shard_id "
            "or target.get(TOPOLOGY_VERSION_KEY) != str(own):\n",
            "        if target.get(TOPOLOGY_VERSION_KEY) != str(own):\n",
        ),
    ),
    planted(
        "the router mixes results up",
        Promise.CONTRACT,
        found_by(
            "unit/test_router_service.py::test_results_come_in_request_order_over_random_splits"
        ),
        Edit(
            TRANSFERS,
            "            outcomes[position] = outcome\n\n    def write_fault",
            "            outcomes[position - 1] = outcome\n\n    def write_fault",
        ),
    ),
    planted(
        "what met another topology is not sent again",
        Promise.CONTRACT,
        found_by(
            "unit/test_router_topology.py::test_a_newer_topology_is_waited_for_and_the_items_are_taken_apart_anew"
        ),
        Edit(
            "router/scatter.py",
            "            elif not is_last and is_stale(answer, version):\n",
            "            elif is_last and is_stale(answer, version):\n",
        ),
    ),
    planted(
        "doubt under the old topology is forgotten under the new",
        Promise.EXACTLY_ONCE,
        found_by(
            "unit/test_router_topology.py::test_what_may_have_happened_under_the_old_topology_stays_indefinite"
        ),
        Edit(
            "router/scatter.py",
            "                fault = as_indefinite(answer) if maybe_done else answer\n",
            "                fault = answer\n",
        ),
    ),
    planted(
        "the router's admission is never released",
        Promise.BOUNDED,
        found_by(
            "unit/test_router_service.py::test_more_than_the_router_may_have_in_progress_is_refused_early"
        ),
        Edit(
            TRANSFERS,
            "        self._in_flight -= weight\n",
            "        pass\n",
        ),
    ),
    planted(
        "the router's admission is released twice",
        Promise.BOUNDED,
        found_by(
            "unit/test_router_service.py::test_more_than_the_router_may_have_in_progress_is_refused_early"
        ),
        Edit(
            TRANSFERS,
            "        self._in_flight -= weight\n",
            "        self._in_flight -= 2 * weight\n",
        ),
    ),
    planted(
        "a router's admission has no bound",
        Promise.BOUNDED,
        found_by(
            "unit/test_router_service.py::test_more_than_the_router_may_have_in_progress_is_refused_early"
        ),
        Edit(
            TRANSFERS,
            "        if self._in_flight + weight > self._in_flight_max:\n",
            "        if weight > self._in_flight_max:\n",
        ),
    ),
    planted(
        "a shard's admission is never released",
        Promise.BOUNDED,
        found_by("unit/test_engine.py::test_admission_is_bounded_and_refusing_executes_nothing"),
        Edit(ENGINE, "            self._queued_transfers -= work.count\n", ""),
    ),
    planted(
        "a shard's queue has no bound",
        Promise.BOUNDED,
        found_by("unit/test_engine.py::test_admission_is_bounded_and_refusing_executes_nothing"),
        Edit(
            ENGINE,
            "        if self._queued_transfers + count > self.limits.queue_transfers_max:\n",
            "        if count > self.limits.queue_transfers_max:\n",
        ),
    ),
    planted(
        "the applier does not wait for a checkpoint that is behind",
        Promise.BOUNDED,
        found_by(f"{OF_ENGINE}::test_the_applier_waits_for_the_checkpoint_and_goes_on_after"),
        Edit(
            ENGINE,
            "            self.ledger.memory.rows_not_checkpointed >= rows_max\n",
            "            self.ledger.memory.rows_not_checkpointed < 0\n",
        ),
    ),
    planted(
        "commit and abort wait for admission",
        Promise.BOUNDED,
        found_by(
            "unit/test_crossing_service.py::test_admission_refuses_new_work_and_lets_pass_what_finishes_old"
        ),
        Edit(
            ENGINE,
            "        answers: list[bytes] = []\n        durable: list",
            "        self._admit(1)\n        answers: list[bytes] = []\n        durable: list",
        ),
    ),
    planted(
        "retry with a new id",
        Promise.EXACTLY_ONCE,
        found_by("unit/test_sdk_client.py::test_what_may_pass_is_asked_again_with_the_same_id"),
        Edit(
            BATCHES,
            "            results = await self._kind.ask(asked, timeout_s)\n",
            "            fresh = new_transfer_id() if self._latest else b''\n"
            "            some = [structs.replace(each, transfer_id=fresh) for each in asked]\n"
            "            results = await self._kind.ask(some if fresh else asked, timeout_s)\n",
        ),
        Edit(
            BATCHES,
            "from doubloon.retry import Retrier, can_be_asked_again\n",
            "from msgspec import structs\n"
            "from doubloon.ids import new_transfer_id\n"
            "from doubloon.retry import Retrier, can_be_asked_again\n",
        ),
    ),
    planted(
        "the SDK takes a refusal without a record for the answer to a lost one",
        Promise.EXACTLY_ONCE,
        found_by("unit/test_sdk_batches.py::test_doubt"),
        Edit(
            BATCHES,
            "                if doubt is None or self._kind.speaks_for_key(result):\n",
            "                if result is not None:\n",
        ),
    ),
    planted(
        "the SDK calls doubt a definite fault",
        Promise.EXACTLY_ONCE,
        found_by("unit/test_sdk_batches.py::test_doubt"),
        Edit(
            BATCHES,
            "            final = self._doubts.get(index) or self._latest.get(index) or fault\n",
            "            final = self._latest.get(index) or fault\n",
        ),
    ),
    planted(
        "no answer from a call that was sent is called definite",
        Promise.EXACTLY_ONCE,
        found_by(
            "contract/test_shard_client.py::test_a_call_that_grpc_cancels_on_the_way_is_a_node_that_went_away"
        ),
        Edit(
            "cluster/peers.py",
            "                raise self._fault(fault.message, indefinite=fault.indefinite) "
            "from error\n",
            "                raise self._fault(fault.message, indefinite=False) from error\n",
        ),
    ),
)
