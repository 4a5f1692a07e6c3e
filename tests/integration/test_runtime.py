"""How processes start and end, seen from outside."""

import asyncio
import json
import os
import signal
import subprocess
import sys
import time

import pytest

from cluster.runtime import LoopMonitor
from tests.support import ROOT

WAIT_S = 20

PREAMBLE = """
import asyncio
from cluster import logs, runtime
logs.configure("test_role", "t-1", "json")
async def main(stop):
    print("running", flush=True)
    {body}
runtime.run(main)
"""


def start(body: str, *flags: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, *flags, "-c", PREAMBLE.format(body=body)],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def finish(process: subprocess.Popen[str]) -> tuple[int, list[dict[str, object]]]:
    _, errors = process.communicate(timeout=WAIT_S)
    return process.returncode, [json.loads(line) for line in errors.splitlines()]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_is_a_request_to_stop(number: signal.Signals) -> None:
    process = start("await stop.wait()")
    assert process.stdout
    assert process.stdout.readline() == "running\n"
    process.send_signal(number)
    code, lines = finish(process)
    assert code == 0
    assert [(line["event"], line["role"], line["id"]) for line in lines] == [
        ("stopping", "test_role", "t-1"),
        ("stopped", "test_role", "t-1"),
    ]
    assert lines[0]["signal"] == number.name


def test_a_second_signal_ends_it_at_once() -> None:
    process = start("await stop.wait(); print('stopping', flush=True); await asyncio.sleep(3600)")
    assert process.stdout
    assert process.stdout.readline() == "running\n"
    process.send_signal(signal.SIGTERM)
    assert process.stdout.readline() == "stopping\n"
    process.send_signal(signal.SIGTERM)
    assert finish(process)[0] == -signal.SIGTERM


@pytest.mark.parametrize(
    ("body", "code", "event"),
    [
        ("raise ValueError('x')", 1, "failed"),
        ("raise runtime.StartRefused('no such shard')", 2, "start_refused"),
        ("runtime.fatal('sync failed', block=7)", 70, "fatal"),
    ],
)
def test_every_end_has_its_exit_code_and_one_line(body: str, code: int, event: str) -> None:
    found, lines = finish(start(body))
    assert found == code
    assert [line["event"] for line in lines] == [event]


def test_fatal_runs_nothing_more() -> None:
    process = start("try: runtime.fatal('x')\n    finally: print('must not be seen', flush=True)")
    output, _ = process.communicate(timeout=WAIT_S)
    assert output == "running\n"


def test_without_assertions_nothing_starts() -> None:
    process = start("pass", "-O")
    output, errors = process.communicate(timeout=WAIT_S)
    assert (process.returncode, output) == (1, "")
    assert "refusing to start under python -O" in errors


async def test_the_monitor_finds_a_stall() -> None:
    monitor = LoopMonitor(period_s=0.001)
    monitor.start()
    await asyncio.sleep(0)
    begun = time.perf_counter()
    while time.perf_counter() - begun < 0.05:
        pass
    begun_ms = (time.perf_counter() - begun) * 1e3
    while monitor.longest_turn_ms == 0.0:  # noqa: ASYNC110 - until the monitor's timer had its turn
        await asyncio.sleep(0)
    assert monitor.longest_turn_ms >= begun_ms - 0.001
    assert 0 < monitor.longest_turn_cpu_ms <= monitor.longest_turn_ms
    monitor.reset()
    assert monitor.longest_turn_ms == 0.0
    monitor.stop()


@pytest.mark.skipif(not hasattr(os, "SCHED_BATCH"), reason="this system has no such policy")
def test_threads_inherit_the_batch_policy() -> None:
    body = (
        "import os, threading; "
        "policy = lambda: print(os.sched_getscheduler(0) == os.SCHED_BATCH, flush=True); "
        "policy(); runtime.schedule_as_batch(); policy(); "
        "thread = threading.Thread(target=policy); thread.start(); thread.join()"
    )
    process = start(body)
    output, errors = process.communicate(timeout=WAIT_S)
    assert output.splitlines() == ["running", "False", "True", "True"], errors


def test_where_the_batch_policy_is_not_allowed_nothing_changes() -> None:
    # The system refuses a policy that there is not as it would refuse one without the right to it.
    body = "import os; os.SCHED_BATCH = -1; runtime.schedule_as_batch()"
    code, lines = finish(start(body))
    assert code == 0
    assert [line["event"] for line in lines] == ["not_scheduled_as_batch", "stopped"]
