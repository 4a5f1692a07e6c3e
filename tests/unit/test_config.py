"""Options common to every role: checked at the rim, and every complaint names the option."""

from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from cluster.config import CommonConfig, EtcdTls, server_options


def parse(
    *arguments: str, env: dict[str, str] | None = None
) -> tuple[int, str, CommonConfig | None]:
    found: list[CommonConfig] = []

    @click.command()
    @click.option("--own", type=int, default=0)
    @server_options
    def command(config: CommonConfig, own: int) -> None:
        found.append(config)

    result = CliRunner(env=env or {}).invoke(command, arguments)
    return result.exit_code, result.output, found[0] if found else None


def test_defaults() -> None:
    assert parse()[2] == CommonConfig(
        cluster="doubloon",
        etcd=("127.0.0.1:2379",),
        listen="127.0.0.1:0",
        advertise="",
        log_format="json",
        etcd_tls=None,
    )


def test_everything_given(tmp_path: Path) -> None:
    files = {name: tmp_path / name for name in ("ca", "cert", "key")}
    for file in files.values():
        file.touch()
    _, _, config = parse(
        *("--cluster", "eu-1", "--etcd", "a:1,b:2", "--listen", "0.0.0.0:7000"),
        *("--advertise", "node-1.internal", "--log-format", "human"),
        *(part for name, file in files.items() for part in (f"--etcd-{name}", str(file))),
    )
    assert config == CommonConfig(
        "eu-1",
        ("a:1", "b:2"),
        "0.0.0.0:7000",
        "node-1.internal",
        "human",
        EtcdTls(files["ca"], files["cert"], files["key"]),
    )
    assert config.address("0.0.0.0:7000") == "node-1.internal:7000"


def test_the_environment_speaks_where_the_command_line_does_not() -> None:
    env = {"DOUBLOON_ETCD": "a:1,b:2", "DOUBLOON_CLUSTER": "x", "DOUBLOON_LISTEN": "h:1"}
    config = parse("--cluster", "y", env=env)[2]
    assert config is not None
    assert (config.etcd, config.cluster, config.listen) == (("a:1", "b:2"), "y", "h:1")
    assert config.address("h:1") == "h:1"


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["--cluster", "A/B"], "--cluster"),
        (["--cluster", ""], "--cluster"),
        (["--etcd", "localhost"], "--etcd"),
        (["--etcd", "a:1,,b:2"], "--etcd"),
        (["--etcd", "a:1,a:1"], "--etcd"),
        (["--etcd", "a:0"], "--etcd"),
        (["--listen", "localhost:65536"], "--listen"),
        (["--listen", ":80"], "--listen"),
        (["--listen", "0.0.0.0:80"], "--advertise"),
        (["--log-format", "xml"], "--log-format"),
        (["--etcd-ca", "/does/not/exist"], "--etcd-ca"),
        (["--etcd-cert", __file__], "--etcd-key"),
        (["--etcd-cert", __file__, "--etcd-key", __file__], "--etcd-ca"),
    ],
)
def test_a_bad_option_is_refused_by_name(arguments: list[str], complaint: str) -> None:
    code, output, config = parse(*arguments)
    assert code == 2
    assert complaint in output
    assert config is None
