"""`doubloon`, the operators' command, as a process against a cluster that it started itself."""

import csv
import os
import random
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from doubloon import AdminClient
from tests.support import eventually
from tests.support.cli import NOTHING_IN_DOUBT, Cli, finish

pytestmark = pytest.mark.slow

TREASURY, ANN, BOB, POOR = 1, 2, 3, 4
REPLAY_FIRST, REPLAY_PLAYERS, REPLAY_ROWS = 100, 5, 3_000


def pids(processes: list[dict[str, Any]]) -> set[int]:
    return {each["pid"] for each in processes}


@pytest.fixture(scope="module")
def cli(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cli]:
    """A cluster of one shard with GOLD, a treasury and two players, brought up by the command."""
    made = Cli(tmp_path_factory.mktemp("var"), "tested")
    up = None
    try:
        up = made.ask("cluster", "up", "--shards", "1", "--allow-imports")
        made.ask("currency", "register", "GOLD", "--scale", "2", "--name", "Gold")
        made.ask("account", "open", str(TREASURY), "--kind", "SYSTEM", "--floor", "-100000000")
        made.ask("account", "open", str(ANN), str(BOB), str(POOR))
        made.ask("transfer", str(TREASURY), str(ANN), "100", "GOLD", "--type", "REWARD")
        yield made
    finally:
        ended = made.run("cluster", "down", "--json")
    assert ended.code == 0
    assert pids(ended.value["ended"]) == pids(up["processes"])
    assert ended.value["killed"] == []


# Commands that change nothing: arguments, what people read, what programs read.
QUESTIONS: dict[str, tuple[str, str, Callable[[Any], bool]]] = {
    "currency list": ("GOLD", "Gold", lambda v: v[0]["scale"] == 2),
    f"account show {ANN}": ("PLAYER", "100.00", lambda v: v["account"]["account_id"] == ANN),
    f"flows {ANN}": ("incoming", "100.00", lambda v: v["flows"][0]["incoming_minor"] == 10_000),
    f"series {ANN} GOLD": ("hour from", "100.00", lambda v: len(v["hours"]) == 720),
    f"series {ANN} GOLD --plot": ("100", "GOLD", lambda v: v["opening_balance_minor"] == 0),
    f"entries {ANN}": ("REWARD", "100.00", lambda v: v["entries"][0]["counterparty"] == TREASURY),
    "verify": ("the books balance", "yes", lambda v: v["balanced"] is True),
    "audit": ("the shards' books agree", "0 in doubt", lambda v: v["pairs"] == []),
    "txn list": ("0 in doubt or unfinished", "transaction", lambda v: v == NOTHING_IN_DOUBT),
    "cluster status": ("router 1", "running", lambda v: v["up"] is True),
    "cluster up": ("already up", "cluster down", lambda v: v["name"] == "tested"),
}


@pytest.mark.parametrize("question", QUESTIONS)
def test_questions_are_answered_for_people_and_for_programs(cli: Cli, question: str) -> None:
    said, also_said, holds = QUESTIONS[question]
    shown = cli.run(*question.split())
    assert shown.code == 0
    assert said in shown.output, shown.output
    assert also_said in shown.output, shown.output
    value = cli.ask(*question.split())
    assert holds(value), value


# What is wrong with a command, its exit code, and what the error names.
MISTAKES = [
    (f"transfer {TREASURY} {BOB} 12.505 GOLD", 2, "AMOUNT"),
    (f"transfer {TREASURY} {BOB} 1 LEAD", 2, "CURRENCY"),
    (f"transfer {TREASURY} {BOB} 1 GOLD --time soon", 2, "--time"),
    (f"flows {ANN} --currency LEAD", 2, "--currency"),
    (f"account open 5 --floor {-5}", 2, "--floor"),
    (f"account show {2**62}", 1, "NOT_FOUND"),
    (f"account close {ANN} --reason leaves", 1, "FAILED_PRECONDITION"),
    ("currency register GOLD --scale 3", 1, "GOLD"),
    ("flows 1 --cluster elsewhere", 2, "--router"),
    (f"group {TREASURY}:{BOB}:1:GOLD {BOB}:{ANN}:0:LEAD", 2, "'LEAD'"),
    (f"group {TREASURY}:{BOB}:1", 2, "SOURCE:DESTINATION:AMOUNT:CURRENCY[:TYPE]"),
    ("txn show 00", 2, "32 hexadecimal digits"),
    (f"txn resolve {'00' * 16}", 1, "NOT_FOUND"),
]


@pytest.mark.parametrize(("command", "code", "named"), MISTAKES)
def test_mistakes_are_named(cli: Cli, command: str, code: int, named: str) -> None:
    answer = cli.run(*command.split())
    assert (answer.code, answer.output) == (code, "")
    assert named in answer.errors


def test_a_fault_is_json_for_programs(cli: Cli) -> None:
    value = cli.ask("account", "show", str(2**62), code=1)
    assert value["fault"]["code"] == "NOT_FOUND"
    assert value["fault"]["indefinite"] is False


def test_transfers_are_made_repeated_and_refused(cli: Cli) -> None:
    id_ = "0190a000-0000-7000-8000-000000000001"
    once = ("transfer", str(TREASURY), str(BOB), "12.50", "GOLD", "--id", id_, "--reference", "9")
    first, second = cli.ask(*once), cli.ask(*once)
    assert (first["status"], first["repeat"], first["transfer_id"]) == ("COMPLETED", False, id_)
    assert second == first | {"repeat": True}
    other_amount = [*once[:3], "12.51", *once[4:]]
    refused = cli.ask(*other_amount, code=3)
    assert refused["refusal"]["reason"] == "KEY_REUSED"
    assert refused["refusal"]["differing_field"] == "amount_minor"
    shown = cli.run("transfer", str(BOB), str(TREASURY), "12.51", "GOLD")
    assert shown.code == 3
    assert "INSUFFICIENT_FUNDS" in shown.output
    past = ("--time", "2020-01-01T00:00:00Z")
    imported = cli.ask("transfer", str(TREASURY), str(POOR), "1", "GOLD", *past, code=3)
    assert imported["refusal"]["reason"] == "IMPORT_TOO_OLD", "the treasury has later entries"


def test_groups_are_made_repeated_and_refused(cli: Cli) -> None:
    buyer, seller, house = "81", "82", str(TREASURY)
    cli.ask("account", "open", buyer, seller)
    cli.ask("transfer", str(TREASURY), buyer, "20", "GOLD")
    sale = (f"{buyer}:{seller}:12.50:GOLD:SALE", f"{seller}:{house}:0.60:GOLD:FEE")
    id_ = "0190a000-0000-7000-8000-000000000002"
    first, second = (cli.ask("group", *sale, "--id", id_) for _ in range(2))
    assert (first["status"], first["group_id"]) == ("COMPLETED", id_)
    assert first["source_balance_after_minor"] == 750
    assert second == first | {"repeat": True}
    fee, price = cli.ask("entries", seller)["entries"]
    assert [(each["type"], each["group_index"]) for each in (price, fee)] == [
        ("SALE", 0),
        ("FEE", 1),
    ]
    shown = cli.run("group", f"{seller}:{buyer}:1:GOLD", f"{buyer}:{seller}:8.51:GOLD")
    assert shown.code == 3
    assert "REFUSED: INSUFFICIENT_FUNDS (retry: NEW_KEY), transfer 1" in shown.output
    assert [each["amount_minor"] for each in cli.ask("entries", seller)["entries"]] == [60, 1250]


def test_an_account_is_frozen_unfrozen_and_closed(cli: Cli) -> None:
    account, because = "77", ("--reason", "a test")
    assert cli.ask("account", "open", account)[0]["status"] == "OPENED"
    assert cli.ask("account", "open", account)[0]["repeat"] is True
    other = cli.ask("account", "open", account, "--cap", "5", code=3)
    assert other[0]["differing_field"] == "cap_minor"
    for command, status in (("freeze", "FROZEN"), ("unfreeze", "ACTIVE"), ("close", "CLOSED")):
        changed = cli.ask("account", command, account, *because)
        assert (changed["account"]["status"], changed["repeat"]) == (status, False)
    assert cli.ask("account", "show", account)["account"]["status_reason"] == "a test"


def replay_file(path: Path, rng: random.Random) -> None:
    """Rows that form one long chain, so that a replay of them takes many batches."""
    with path.open("w", newline="", encoding="utf-8") as text:
        rows = csv.writer(text)
        rows.writerow(["id", "source_account_id", "destination_account_id", "currency",
                       "amount_minor", "type", "metadata"])  # fmt: skip
        for number in range(REPLAY_ROWS):
            player = REPLAY_FIRST + rng.randrange(REPLAY_PLAYERS)
            rows.writerow([f"row {number}", TREASURY, player, "GOLD", 1, "REWARD", "né"])


async def test_a_replay_is_interrupted_and_goes_on(
    cli: Cli, tmp_path: Path, rng: random.Random
) -> None:
    path = tmp_path / "rows.csv"
    replay_file(path, rng)
    players = [str(REPLAY_FIRST + number) for number in range(REPLAY_PLAYERS)]
    assert len(cli.ask("account", "open", *players)) == REPLAY_PLAYERS
    (router,) = cli.ask("cluster", "status")["state"]["routers"]
    enough = rng.randrange(50, REPLAY_ROWS // 4)
    with AdminClient(router) as admin:

        def completed() -> int:
            return admin.cluster_status().shards[0].transfers_completed

        before = completed()
        running = cli.start("replay", str(path), "--json")
        await eventually(lambda: completed() - before >= enough, f"{enough} rows were played")
        running.send_signal(signal.SIGINT)
        stopped = finish(running)
    assert (stopped.code, stopped.value["stopped"]) == (130, "interrupted")
    assert 0 < stopped.value["completed"] < REPLAY_ROWS
    assert stopped.value["unsent"] == REPLAY_ROWS - stopped.value["completed"]

    resumed = cli.ask("replay", str(path), "--hub", str(TREASURY))
    # The batch that was on its way when the signal came may have happened, unheard.
    assert stopped.value["completed"] <= resumed["repeats"]
    assert resumed["completed"] + resumed["repeats"] == REPLAY_ROWS
    shown = cli.run("replay", str(path), "--hub", str(TREASURY), "--batch", "1000")
    assert shown.code == 0
    assert f"repeats of earlier runs {REPLAY_ROWS:,}" in " ".join(shown.output.split())
    held = [cli.ask("account", "show", player)["balances"][0] for player in players]
    assert sum(balance["posted_minor"] for balance in held) == REPLAY_ROWS
    assert cli.ask("verify")["balanced"] is True


def test_a_replay_names_what_is_wrong_with_its_file(cli: Cli, tmp_path: Path) -> None:
    path = tmp_path / "bad.csv"
    header = "id,source_account_id,destination_account_id,currency,amount_minor\n"
    path.write_text(f"{header}a,{TREASURY},{BOB},GOLD,1\nb,{TREASURY},{BOB},GOLD,much\n")
    answer = cli.run("replay", str(path))
    assert answer.code == 2
    assert "FILE" in answer.errors
    assert "line 3: amount_minor: 'much'" in answer.errors
    entries = cli.ask("entries", str(BOB))["entries"]
    assert "a" not in {entry["metadata"] for entry in entries}, "nothing of it was made"


def test_a_cluster_goes_down_comes_back_and_shows_its_dead(tmp_path: Path) -> None:
    cli = Cli(tmp_path, "mortal")
    assert cli.ask("cluster", "status", code=1) == {"up": False}
    try:
        up = cli.ask("cluster", "up", "--shards", "1", "--routers", "2")
        assert len(up["routers"]) == 2
        cli.ask("account", "open", "7")
        cli.ask("cluster", "down")
        assert cli.ask("cluster", "status", code=1) == {"up": False}
        answer = cli.run("cluster", "up", "--shards", "2")
        assert answer.code == 2
        assert "--shards" in answer.errors
        up = cli.ask("cluster", "up", "--shards", "1")
        assert cli.ask("account", "show", "7")["account"]["account_id"] == 7

        (shard,) = [each for each in up["processes"] if each["role"] == "shard"]
        os.kill(shard["pid"], signal.SIGKILL)
        status = cli.ask("cluster", "status", code=1)
        assert status["up"] is False
        assert status["status"]["shards"][0]["reachable"] is False
        assert "unreachable" in cli.run("cluster", "status").output
        again = cli.run("cluster", "up")
        assert again.code == 1
        started = len(up["processes"])
        assert f"up in part, {started - 1} of {started} processes" in again.errors
    finally:
        ended = cli.ask("cluster", "down")
    assert pids(ended["ended"]) == pids(up["processes"]) - {shard["pid"]}
    assert cli.ask("cluster", "down")["ended"] == []


def test_an_interrupted_start_leaves_nothing_running(tmp_path: Path) -> None:
    """(That nothing runs is checked after every test.)"""
    cli = Cli(tmp_path, "brief")
    starting = cli.start("cluster", "up", "--shards", "3")
    while not list(tmp_path.glob("brief/logs/shard-*.log")):
        assert starting.poll() is None
    starting.send_signal(signal.SIGINT)
    answer = finish(starting)
    assert answer.code == 130
    assert "nothing is left running" in answer.errors
    assert cli.ask("cluster", "status", code=1) == {"up": False}


def test_a_small_demo_passes_its_own_checks(tmp_path: Path) -> None:
    small = ("--shards", "2", "--players", "100", "--events", "2000", "--output", str(tmp_path))
    answer = Cli(tmp_path, "unused").run(*small, "--json", module="scripts.demo")
    assert answer.code == 0, answer
    assert answer.value["passed"] is True
    assert Path(answer.value["picture"]).is_file()
