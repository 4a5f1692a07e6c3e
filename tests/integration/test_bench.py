"""Every kind of case of the benchmark suite runs at a tiny scale, and says all that it should.

Nothing here judges time. Left out are only cases that differ from one here in a number: more
shards, another share of crossing, another spread of accounts.
"""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from scripts.bench import cases
from scripts.bench.report import check_format, markdown
from tests.support import ROOT

TIMEOUT_S = 100.0
OURS = (  # in parts, each on a cluster or two of its own
    ("floor-sync", "floor-lmdb", "floor-grpc", "node", "callers-64", "callers-1", "unary"),
    ("two-shards", "restart"),
    ("questions", "sizes", "sizes-node", "growth"),
)
PEERS = ("postgres-uniform", "redis-uniform")
FIGURES = {
    "floor-sync": {"syncs", "sync p50", "sync p99"},
    "node": {"transfers", "call p50", "disk, log and state", "shard node's memory"},
    "two-shards": {"transfers", "call p50", "call p99"},
    "callers-1": {"transfers", "above a bare sync, p50", "bare sync p50"},
    "unary": {"transfers", "load generator"},
    "questions": {"flows of 24 h, p99", "series of 30 days, p99", "longest turn, shard node"},
    "restart": {"away"},
    "growth": {"the last beside the first tenth"},
}
BARS = {"node": "1", "two-shards": "2", "callers-64": "3", "questions": "6", "restart": "7"}
USED = {
    "seconds", "transfers", "syncs", "syncs_per_s", "log_bytes_per_transfer",
    "disk_bytes_per_transfer", "cpu_s", "cpu_us_per_transfer", "rss_anon_bytes", "longest_turn_ms",
    "turn_before_ms", "turn_cpu_ms", "others_cpu_s", "stolen_cpu_s", "python_loop_ns",
}  # fmt: skip


def run(tmp_path: Path, names: tuple[str, ...]) -> dict[str, Any]:
    """Run cases as a person would, and return the JSON file."""
    path = tmp_path / "bench.json"
    command = [sys.executable, "-m", "scripts.bench", "--only", ",".join(names)]
    command += ["--json", str(path), "--scale", "0.0005", "--repeats", "1", "--seed", "7"]
    with subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as process:
        try:
            said, _ = process.communicate(timeout=TIMEOUT_S)
        finally:
            process.terminate()  # when it takes too long: it ends what it started
    assert process.returncode == 0, said
    report: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    assert [case["name"] for case in report["cases"]] == [
        case.name for case in cases.ALL if case.name in names
    ]
    return report


@pytest.mark.parametrize("names", OURS, ids=lambda names: names[0])
def test_every_kind_of_case_runs_and_tells_everything(
    tmp_path: Path, names: tuple[str, ...]
) -> None:
    report = run(tmp_path, names)
    check_format(report)
    assert {"processor", "cores", "system", "python"} <= report["machine"].keys()
    found = {case["name"]: case for case in report["cases"]}
    for name, case in found.items():
        figures = {figure["name"]: figure for figure in case["figures"]}
        assert FIGURES.get(name, set()) <= figures.keys(), name
        for figure in figures.values():
            assert figure["min"] <= figure["median"] <= figure["max"], figure
        if name in BARS:
            bars = [figure["bar"] for figure in figures.values() if figure["bar"]]
            assert BARS[name] in {bar["number"] for bar in bars}, name
        if not name.startswith("floor") and name != "restart":
            usage = case["usage"]
            assert usage.keys() >= USED
            assert usage["transfers"] > 0
            assert usage["syncs"] > 0
            assert {"client", "etcd-1", "router-1", "shard-1"} <= usage["cpu_s"].keys()
    if "two-shards" in found:
        used = found["two-shards"]["usage"]["cpu_s"].keys()
        assert {"coordinator-1", "shard-2", "checkpoint-2"} <= used
    assert names[-1] in markdown(report)


@pytest.mark.parametrize("name", PEERS)
def test_a_peer_does_the_same_work_or_is_not_installed(tmp_path: Path, name: str) -> None:
    (case,) = run(tmp_path, (name,))["cases"]
    if case["skipped"]:
        assert case["skipped"].startswith("not installed")
        pytest.skip(f"{name}: {case['skipped']}")
    assert {"1 client"} <= {figure["name"] for figure in case["figures"]}
    assert all(figure["min"] > 0 for figure in case["figures"])
