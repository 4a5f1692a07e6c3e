"""Options that every role has, read and checked once, at the rim.

Each option can also come from the environment: `--log-format` is `DOUBLOON_LOG_FORMAT`.
"""

import functools
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

import click

from cluster.logs import LogFormat

P = ParamSpec("P")
R = TypeVar("R")

# A cluster's name is one segment of etcd keys.
_CLUSTER_NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,62}")
_ADDRESS = re.compile(r"(\[[0-9A-Fa-f:]+\]|[A-Za-z0-9_.-]+):(\d{1,5})")
ETCD_ENDPOINTS_MAX = 16  # more than any etcd cluster has members


@dataclass(frozen=True)
class EtcdTls:
    """Files for TLS to etcd, PEM.

    Attributes:
        ca: who must have signed etcd's certificate.
        cert: our certificate; None when etcd does not ask for one.
        key: its key; given exactly when `cert` is.
    """

    ca: Path
    cert: Path | None = None
    key: Path | None = None


@dataclass(frozen=True)
class CommonConfig:
    """What every server role is told.

    Attributes:
        cluster: the cluster's name, part of every etcd key.
        etcd: endpoints as `host:port`, tried in turn.
        listen: `host:port` to bind; port 0 lets the system choose.
        advertise: host that others reach this process by; "" = the host it listens on.
        log_format: for machines or for people.
        etcd_tls: None = no TLS to etcd.
    """

    cluster: str
    etcd: tuple[str, ...]
    listen: str
    advertise: str
    log_format: LogFormat
    etcd_tls: EtcdTls | None

    def address(self, bound: str) -> str:
        """Return the address to register, given the `host:port` that was bound."""
        host, _, port = bound.rpartition(":")
        return f"{self.advertise or host}:{port}"


class Address(click.ParamType[str]):
    """`host:port`."""

    name = "host:port"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        """Check the form and the port's range."""
        text = str(value).strip()
        match = _ADDRESS.fullmatch(text)
        if match is None or int(match[2]) > 0xFFFF:
            self.fail(f"{text!r} is not HOST:PORT", param, ctx)
        return text


class Endpoints(click.ParamType[tuple[str, ...]]):
    """`host:port[,host:port…]`."""

    name = "host:port,…"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[str, ...]:
        """Check each; no port may be 0 and no endpoint named twice."""
        if isinstance(value, tuple):
            return value
        found = tuple(Address().convert(one, param, ctx) for one in str(value).split(","))
        if len(set(found)) != len(found):
            self.fail("an endpoint is named twice", param, ctx)
        if len(found) > ETCD_ENDPOINTS_MAX:
            self.fail(f"more than {ETCD_ENDPOINTS_MAX} endpoints", param, ctx)
        if any(one.endswith(":0") for one in found):
            self.fail("port 0 cannot be connected to", param, ctx)
        return found


def _cluster_name(_ctx: click.Context, _param: click.Parameter, value: str) -> str:
    if _CLUSTER_NAME.fullmatch(value) is None:
        raise click.BadParameter("lower-case letters, digits, '.', '_', '-'; at most 63")
    return value


def cluster_options(function: Callable[..., R]) -> Callable[..., R]:
    """Add `--cluster`, `--etcd` and `--etcd-ca/-cert/-key` as keyword arguments."""
    file = click.Path(exists=True, dir_okay=False, path_type=Path)
    for option in (
        click.option("--etcd-key", type=file, envvar="DOUBLOON_ETCD_KEY", help="Our key, PEM."),
        click.option(
            "--etcd-cert", type=file, envvar="DOUBLOON_ETCD_CERT", help="Our certificate, PEM."
        ),
        click.option(
            "--etcd-ca",
            type=file,
            envvar="DOUBLOON_ETCD_CA",
            help="Use TLS to etcd; its CA, PEM.",
        ),
        click.option(
            "--etcd",
            type=Endpoints(),
            envvar="DOUBLOON_ETCD",
            default="127.0.0.1:2379",
            show_default=True,
            help="etcd's endpoints.",
        ),
        click.option(
            "--cluster",
            callback=_cluster_name,
            envvar="DOUBLOON_CLUSTER",
            default="doubloon",
            show_default=True,
            help="The cluster's name.",
        ),
    ):
        function = option(function)
    return function


def server_options(function: Callable[..., R]) -> Callable[..., R]:
    """Add every common option; the command receives them as `config: CommonConfig`."""

    @cluster_options
    @click.option(
        "--listen",
        type=Address(),
        envvar="DOUBLOON_LISTEN",
        default="127.0.0.1:0",
        show_default=True,
        help="Where to serve gRPC; port 0 = any free one.",
    )
    @click.option(
        "--advertise",
        envvar="DOUBLOON_ADVERTISE",
        default="",
        help="Host that others reach this process by, when not the one it listens on.",
    )
    @click.option(
        "--log-format",
        type=click.Choice(["json", "human"]),
        envvar="DOUBLOON_LOG_FORMAT",
        default="json",
        show_default=True,
    )
    @functools.wraps(function)
    def command(
        *,
        cluster: str,
        etcd: tuple[str, ...],
        etcd_ca: Path | None,
        etcd_cert: Path | None,
        etcd_key: Path | None,
        listen: str,
        advertise: str,
        log_format: LogFormat,
        **own: Any,
    ) -> R:
        host = listen.rpartition(":")[0]
        if not advertise and host in {"0.0.0.0", "[::]"}:  # noqa: S104 - refused, not bound
            raise click.BadParameter(f"needed when listening on {host}", param_hint="--advertise")
        tls = etcd_tls(etcd_ca, etcd_cert, etcd_key)
        config = CommonConfig(cluster, etcd, listen, advertise, log_format, tls)
        return function(config=config, **own)

    return command


def etcd_tls(ca: Path | None, cert: Path | None, key: Path | None) -> EtcdTls | None:
    """Check that the TLS files make sense together.

    Raises:
        click.BadParameter: a certificate without its key or CA, or the other way round.
    """
    if (cert is None) != (key is None):
        raise click.BadParameter("--etcd-cert and --etcd-key belong together")
    if ca is None:
        if cert is not None:
            raise click.BadParameter("--etcd-cert needs --etcd-ca")
        return None
    return EtcdTls(ca, cert, key)
