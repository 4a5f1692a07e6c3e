"""The operators' command where it needs no cluster: options, errors, JSON, the state file."""

import json
import os
import re
from pathlib import Path

import click
import pytest
from click.testing import CliRunner, Result

from doubloon import AccountStatus, Currency, Flows, RecordName, TransferType
from scripts.commands.money import transfer_of
from scripts.commands.session import plain
from scripts.doubloon import main
from scripts.naive import Flows as NaiveFlows
from scripts.processes import ProcessRecord, start_mark
from scripts.state_file import FILE_NAME, RunningCluster, StateFileError

COMMANDS = [
    "account", "account close", "account freeze", "account open", "account show",
    "account unfreeze", "audit", "cluster", "cluster down", "cluster status", "cluster up",
    "currency", "currency list", "currency register", "entries", "flows", "group", "replay",
    "series", "transfer", "txn", "txn list", "txn resolve", "txn show", "verify",
]  # fmt: skip


def run(tmp_path: Path, *args: str) -> Result:
    environment = {"DOUBLOON_VAR": str(tmp_path), "DOUBLOON_ROUTER": "", "DOUBLOON_CLUSTER": ""}
    return CliRunner().invoke(main, args, env=environment)


def ours(pid: int | None = None) -> ProcessRecord:
    """A record of this very process."""
    mark = start_mark(os.getpid())
    assert mark is not None
    return ProcessRecord("router", "1", pid or os.getpid(), mark, "log")


def cluster_in(folder: Path, *processes: ProcessRecord) -> RunningCluster:
    folder.mkdir(parents=True)
    return RunningCluster("local", str(folder), "127.0.0.1:1", ("127.0.0.1:2",), processes)


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_explains_itself(tmp_path: Path, command: str) -> None:
    result = run(tmp_path, *command.split(), "--help")
    assert result.exit_code == 0
    assert result.output.startswith(f"Usage: doubloon {command} ")


@pytest.mark.parametrize(
    "command", [c for c in COMMANDS if c not in {"account", "cluster", "currency", "txn"}]
)
def test_every_command_answers_programs(tmp_path: Path, command: str) -> None:
    assert "--json" in run(tmp_path, *command.split(), "--help").output


@pytest.mark.parametrize(
    ("args", "said"),
    [
        ("flows 0", "Invalid value for 'ACCOUNT_ID'"),
        ("flows 1 --as-of soon", "Invalid value for '--as-of': 'soon' is not a time such as"),
        ("flows 1 --hours 0", "Invalid value for '--hours'"),
        ("transfer 1 2 5 GOLD --type BRIBE", "Invalid value for '--type'"),
        ("transfer 1 2 5 GOLD --id 17", "Invalid value for '--id'"),
        ("account freeze 1", "Missing option '--reason'"),
        ("account open 1 --floor 5", "Invalid value for '--floor'"),
        ("replay nowhere.csv", "Invalid value for 'FILE'"),
        ("cluster up --shards 0", "Invalid value for '--shards'"),
        ("cluster up --coordinators x", "Invalid value for '--coordinators'"),
        ("group", "Missing argument 'TRANSFER"),
        ("audit --as-of soon", "Invalid value for '--as-of'"),
        ("txn show 17", "Invalid value for 'ID': 32 hexadecimal digits"),
        ("txn resolve", "Missing argument 'ID'"),
        ("txn list --older-than -1", "Invalid value for '--older-than'"),
        ("cluster up --cluster ../x", "Invalid value for '--cluster'"),
    ],
)
def test_a_wrong_option_is_named(tmp_path: Path, args: str, said: str) -> None:
    result = run(tmp_path, *args.split())
    assert result.exit_code == 2
    assert said in result.output


def test_without_a_cluster_the_error_says_what_to_do(tmp_path: Path) -> None:
    result = run(tmp_path, "flows", "1")
    assert result.exit_code == 2
    assert "no cluster 'local' runs" in result.output
    assert "doubloon cluster up" in result.output
    assert "DOUBLOON_ROUTER" in result.output


def test_a_cluster_that_has_ended_is_no_cluster(tmp_path: Path) -> None:
    cluster_in(tmp_path / "local", ProcessRecord("router", "1", os.getpid(), "1", "log")).save()
    assert "no cluster 'local' runs" in run(tmp_path, "verify").output


def test_down_without_a_cluster_ends_nothing(tmp_path: Path) -> None:
    result = run(tmp_path, "cluster", "down", "--json")
    assert result.exit_code == 0
    assert json.loads(result.output) == {"ended": [], "killed": []}


def test_down_leaves_alone_what_only_has_the_same_id(tmp_path: Path) -> None:
    cluster_in(tmp_path / "local", ProcessRecord("router", "1", os.getpid(), "1", "log")).save()
    assert run(tmp_path, "cluster", "down").output == "cluster local was not running\n"
    assert not (tmp_path / "local" / FILE_NAME).exists()


def test_status_without_a_cluster_fails_plainly(tmp_path: Path) -> None:
    result = run(tmp_path, "cluster", "status")
    assert (result.exit_code, result.output) == (1, "cluster local is not up\n")


def test_a_second_up_says_that_it_is_up(tmp_path: Path) -> None:
    state = cluster_in(tmp_path / "local", ours())
    state.save()
    result = run(tmp_path, "cluster", "up", "--json")
    assert result.exit_code == 0
    assert json.loads(result.output)["routers"] == ["127.0.0.1:2"]
    assert "cluster local is already up" in run(tmp_path, "cluster", "up").output


def test_up_does_not_add_to_a_cluster_that_is_up_in_part(tmp_path: Path) -> None:
    ended = ProcessRecord("shard", "1", os.getpid(), "1", "log")
    cluster_in(tmp_path / "local", ours(), ended).save()
    result = run(tmp_path, "cluster", "up")
    assert result.exit_code == 1
    assert "up in part, 1 of 2 processes" in result.output


def test_the_state_file_keeps_everything(tmp_path: Path) -> None:
    folder = tmp_path / "local"
    state = cluster_in(folder, ours())
    assert RunningCluster.load(folder) is None
    state.save()
    assert RunningCluster.load(folder) == state
    assert state.alive == state.processes
    state.forget()
    assert RunningCluster.load(folder) is None


GOLD = Currency("GOLD", 1, 2, "gold")


def test_a_transfer_of_a_group_is_read() -> None:
    made = transfer_of("7:8:12.50:GOLD:sale", {"GOLD": GOLD})
    assert (made.source, made.destination, made.currency, made.amount_minor) == (7, 8, "GOLD", 1250)
    assert made.type is TransferType.SALE
    assert transfer_of("7:8:1:GOLD", {"GOLD": GOLD}).type is TransferType.TRANSFER


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("7:8:1", "SOURCE:DESTINATION:AMOUNT:CURRENCY"),
        ("7:8:1:GOLD:SALE:more", "SOURCE:DESTINATION:AMOUNT:CURRENCY"),
        ("0:8:1:GOLD", "'0' is not an account"),
        ("7:9223372036854775808:1:GOLD", "is not an account"),
        ("-7:8:1:GOLD", "'-7' is not an account"),
        ("7:8:1.234:GOLD", "3 decimals"),
        ("7:8:1:DUST", "'DUST' is not registered; there is GOLD"),
        ("7:8:1:GOLD:BRIBE", "'BRIBE' is not one of TRANSFER"),
    ],
)
def test_what_is_wrong_with_a_transfer_of_a_group_is_said(text: str, said: str) -> None:
    with pytest.raises(click.BadParameter, match=re.escape(said)) as caught:
        transfer_of(text, {"GOLD": GOLD})
    assert text in str(caught.value.param_hint)


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"processes": [1], "routers": []}', "{"])
def test_a_damaged_state_file_is_named(tmp_path: Path, text: str) -> None:
    folder = tmp_path / "local"
    folder.mkdir()
    (folder / FILE_NAME).write_text(text)
    with pytest.raises(StateFileError, match=r"cluster\.json is damaged"):
        RunningCluster.load(folder)
    result = run(tmp_path, "cluster", "down")
    assert result.exit_code == 1
    assert "cluster.json is damaged" in result.output


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (Flows("GOLD", 1, 2, 3, 4), {"currency": "GOLD", "incoming_minor": 1, "outgoing_minor": 2,
                                     "incoming_count": 3, "outgoing_count": 4}),
        (NaiveFlows(1, 2, 3, 4), {"incoming_minor": 1, "outgoing_minor": 2,
                                  "incoming_count": 3, "outgoing_count": 4}),
        ({"status": AccountStatus.FROZEN}, {"status": "FROZEN"}),
        ({"transfer_id": bytes(range(16))},
         {"transfer_id": "00010203-0405-0607-0809-0a0b0c0d0e0f"}),
        ({"transaction_id": bytes(range(16))},
         {"transaction_id": "000102030405060708090a0b0c0d0e0f"}),
        ({"metadata": b"\x01\xff", "none": None}, {"metadata": "01ff", "none": None}),
        ((RecordName(1, 2),), [{"log_id": 1, "sequence": 2}]),
    ],
)  # fmt: skip
def test_json_spells_everything_plainly(value: object, expected: object) -> None:
    assert plain(value) == expected
    assert json.loads(json.dumps(plain(value))) == expected
