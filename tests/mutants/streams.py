"""Mistakes in both halves of call streams, and in what connections are told."""

from __future__ import annotations

from typing import Final

from tests.mutants.mutant import Edit, Promise, found_by, planted

CALLER: Final = "client/doubloon/call_stream.py"
SERVER: Final = "cluster/call_streams.py"
OF_STREAMS: Final = "unit/test_call_streams.py"
OF_BOUNDS: Final = "unit/test_call_stream_bounds.py"

MUTANTS: Final = (
    planted(
        "an answer on a stream goes to another caller",
        Promise.CONTRACT,
        found_by(f"{OF_STREAMS}::test_answers_find_their_callers_whatever_their_order"),
        Edit(
            SERVER,
            "        answer = pb.CallAnswer(call_id=call.call_id)\n",
            "        answer = pb.CallAnswer(call_id=self._last_id)\n",
        ),
    ),
    planted(
        "a call on a stream has no deadline",
        Promise.BOUNDED,
        found_by(f"{OF_STREAMS}::test_metadata_and_deadline_reach_the_handler"),
        Edit(
            CALLER,
            "                sending.message.timeout_us = max(1, "
            "int((sending.deadline_s - now_s) * 1e6))\n",
            "                sending.message.timeout_us = 0\n",
        ),
    ),
    planted(
        "a handler outlives its deadline on a stream",
        Promise.BOUNDED,
        found_by(
            f"{OF_STREAMS}::test_no_answer_in_time_leaves_it_open_and_gives_up_the_handler",
        ),
        Edit(
            SERVER,
            "        timer = loop.call_at(deadline_s, task.cancel)\n",
            "        timer = loop.call_at(deadline_s + 3_600, task.cancel)\n",
        ),
    ),
    planted(
        "what a lost stream was asked is told not to have begun",
        Promise.EXACTLY_ONCE,
        found_by(f"{OF_STREAMS}::test_a_server_that_dies_leaves_open_what_it_was_asked"),
        Edit(
            CALLER,
            "(begun is not None and call_id > begun)",
            "(begun is None or call_id > begun)",
        ),
    ),
    planted(
        "a peer without call streams is lost when a write meets the end of one",
        Promise.CONTRACT,
        found_by(f"{OF_STREAMS}::test_a_peer_without_the_service_gets_calls_of_their_own"),
        Edit(
            CALLER,
            "                if not is_answered and await",
            "                if is_answered and await",
        ),
    ),
    planted(
        "any number of calls is sent on a stream, to wait at the peer",
        Promise.BOUNDED,
        found_by(
            f"{OF_BOUNDS}::test_what_waits_for_others_is_given_up_at_its_deadline_and_never_sent",
        ),
        Edit(
            CALLER,
            "            in_flight.add(sending.message.call_id)\n",
            "",
        ),
    ),
    planted(
        "a call that waited at a server begins after its deadline",
        Promise.BOUNDED,
        found_by(f"{OF_BOUNDS}::test_what_waits_at_a_server_is_not_begun_after_its_deadline"),
        Edit(
            SERVER,
            "        if deadline_s <= loop.time():\n",
            "        if deadline_s <= 0:\n",
        ),
    ),
    planted(
        "a call whose caller has gone is in flight for ever",
        Promise.BOUNDED,
        found_by(
            f"{OF_BOUNDS}::test_a_caller_that_has_gone_takes_up_room_until_its_deadline",
        ),
        Edit(
            CALLER,
            "if timer is not None and not sending.answer.cancelled():",
            "if timer is not None:",
        ),
    ),
    planted(
        "what a stopping server never began is left open",
        Promise.CONTRACT,
        found_by(f"{OF_BOUNDS}::test_a_stop_says_which_calls_never_began"),
        Edit(
            CALLER,
            "(begun is not None and call_id > begun)",
            "(begun is not None and call_id < begun)",
        ),
    ),
    planted(
        "a fault on a stream loses its detail",
        Promise.CONTRACT,
        found_by(f"{OF_STREAMS}::test_a_fault_comes_through_whole"),
        Edit(
            CALLER,
            "    return grpc.aio.AioRpcError(status, _NO_METADATA, trailing, fault.message)\n",
            "    return grpc.aio.AioRpcError(status, trailing, _NO_METADATA, fault.message)\n",
        ),
    ),
    planted(
        "a stream has any number of calls in progress",
        Promise.BOUNDED,
        found_by(f"{OF_BOUNDS}::test_a_stream_has_only_so_many_calls_in_progress"),
        Edit(
            SERVER,
            "        return count >= CALLS_PER_STREAM_MAX or self._bytes >= STREAM_BYTES_MAX\n",
            "        return count < 0 or self._bytes >= STREAM_BYTES_MAX\n",
        ),
    ),
    planted(
        "answers that nobody reads are no reason to read no more",
        Promise.BOUNDED,
        found_by(f"{OF_BOUNDS}::test_a_caller_that_does_not_read_is_not_read_from"),
        Edit(
            SERVER,
            "        count = len(self._calls) + len(self._answers)\n"
            "        return count >= CALLS_PER_STREAM_MAX or self._bytes >= STREAM_BYTES_MAX\n",
            "        return len(self._calls) >= CALLS_PER_STREAM_MAX\n",
        ),
    ),
    planted(
        "calls on streams are not counted for the process",
        Promise.BOUNDED,
        found_by(f"{OF_BOUNDS}::test_past_the_process_bound_calls_are_refused_before_they_begin"),
        Edit(SERVER, "        self._servicer.calls += 1\n", "        self._servicer.calls += 0\n"),
    ),
    planted(
        "a broken stream is asked again",
        Promise.CONTRACT,
        found_by(f"{OF_STREAMS}::test_a_broken_stream_is_replaced_by_a_later_call"),
        Edit(
            CALLER,
            "        if self._stream is None or not self._stream.is_open:\n",
            "        if self._stream is None:\n",
        ),
    ),
    planted(
        "handlers go on when their caller is lost",
        Promise.BOUNDED,
        found_by(f"{OF_STREAMS}::test_a_caller_that_is_lost_ends_its_handlers"),
        Edit(
            SERVER,
            "            for task in (self._reader, *self._calls):\n",
            "            for task in (self._reader,):\n",
        ),
    ),
    planted(
        "servers keep the default of how often they may be pinged",
        Promise.CONTRACT,
        found_by("integration/test_grpc_options.py", quick=False),
        Edit(
            "cluster/rpc.py",
            '    ("grpc.http2.min_ping_interval_without_data_ms", PING_INTERVAL_MIN_MS),\n',
            '    ("grpc.http2.min_recv_ping_interval_without_data_ms", PING_INTERVAL_MIN_MS),\n',
        ),
    ),
)
