"""How the membership is written in etcd: the keys, and the JSON of their values. Pure.

    /doubloon/<cluster>/members/<role>/<id>   {"address", "version", "started_us"}   leased
    /doubloon/<cluster>/topology              {"version", "slots"}
    /doubloon/<cluster>/shards/<id>           {"epoch", "primary", "standbys"}
    /doubloon/<cluster>/currencies/<code>     {"number", "scale", "name"}

Readers ignore fields that they do not know, so that a later version may add some; only a topology
is read strictly, since acting on half of one would send money to the wrong shard.
"""

import json
import re
from collections.abc import Callable
from typing import Any, TypeVar

from cluster.membership import Currency, Member, ShardInfo
from cluster.topology import Topology, TopologyError

_SHARD_ID = re.compile(r"[1-9][0-9]{0,4}")

Record = Member | Topology | ShardInfo | Currency
T = TypeVar("T")

_SHOWN_LETTERS = 100  # of what is wrong: it may be as long as etcd lets it be


class UnreadableRecord(ValueError):  # noqa: N818 - named for what was found
    """A key or value that is not what belongs there; the message names the field."""


def prefix(cluster: str) -> str:
    """Return what every key of a cluster begins with."""
    return f"/doubloon/{cluster}/"


def member_key(cluster: str, role: str, member_id: str) -> str:
    """Return a member's key."""
    return f"{prefix(cluster)}members/{role}/{member_id}"


def topology_key(cluster: str) -> str:
    """Return the topology's key."""
    return f"{prefix(cluster)}topology"


def shard_key(cluster: str, shard_id: int) -> str:
    """Return a shard's key."""
    return f"{prefix(cluster)}shards/{shard_id}"


def currencies_prefix(cluster: str) -> str:
    """Return what the keys of all currencies begin with."""
    return f"{prefix(cluster)}currencies/"


def currency_key(cluster: str, code: str) -> str:
    """Return a currency's key."""
    return currencies_prefix(cluster) + code


def encode_member(member: Member) -> bytes:
    """Return a member's value."""
    return _encode(address=member.address, version=member.version, started_us=member.started_us)


def decode_member(role: str, member_id: str, value: bytes) -> Member:
    """Read a member. Raises: UnreadableRecord."""
    body = _decode(value, address=str, version=str, started_us=int)
    return _checked(
        lambda: Member(role, member_id, body["address"], body["version"], body["started_us"])
    )


def encode_shard(shard: ShardInfo) -> bytes:
    """Return a shard's value."""
    return _encode(epoch=shard.epoch, primary=shard.primary, standbys=shard.standbys)


def decode_shard(shard_id: str, value: bytes) -> ShardInfo:
    """Read a shard; its id as the key spells it. Raises: UnreadableRecord."""
    if _SHARD_ID.fullmatch(shard_id) is None:
        raise UnreadableRecord(f"shard_id: {shard_id!r} is not a number")
    body = _decode(value, epoch=int, primary=str, standbys=list)
    if not all(isinstance(one, str) for one in body["standbys"]):
        raise UnreadableRecord("standbys: must be a list of member ids")
    return _checked(
        lambda: ShardInfo(int(shard_id), body["epoch"], body["primary"], tuple(body["standbys"]))
    )


def encode_currency(currency: Currency) -> bytes:
    """Return a currency's value."""
    return _encode(number=currency.number, scale=currency.scale, name=currency.name)


def decode_currency(code: str, value: bytes) -> Currency:
    """Read a currency. Raises: UnreadableRecord."""
    body = _decode(value, number=int, scale=int, name=str)
    return _checked(lambda: Currency(code, body["number"], body["scale"], body["name"]))


def decode(cluster: str, key: str, value: bytes) -> Record | None:
    """Read whatever a key of the cluster holds; None for a key that this version does not know.

    Raises:
        UnreadableRecord: the key is known and the value is not what belongs there.
    """
    match key.removeprefix(prefix(cluster)).split("/"):
        case ["topology"]:
            try:
                return Topology.from_json(value)
            except TopologyError as error:
                raise UnreadableRecord(str(error)) from error
        case ["members", role, member_id]:
            return decode_member(role, member_id, value)
        case ["shards", shard_id]:
            return decode_shard(shard_id, value)
        case ["currencies", code]:
            return decode_currency(code, value)
    return None


def _encode(**fields: object) -> bytes:
    return json.dumps(fields, separators=(",", ":"), ensure_ascii=False).encode()


def _decode(value: bytes, **types: type) -> dict[str, Any]:
    try:
        body = json.loads(value)
    except (ValueError, RecursionError) as error:
        raise UnreadableRecord(f"value: is not JSON: {error}") from error
    if not isinstance(body, dict):
        raise UnreadableRecord("value: must be a JSON object")
    for name, wanted in types.items():
        if not isinstance(body.get(name), wanted) or isinstance(body[name], bool):
            found = repr(body.get(name))[:_SHOWN_LETTERS]
            raise UnreadableRecord(f"{name}: must be {wanted.__name__}, is {found}")
    return body


def _checked(make: Callable[[], T]) -> T:
    try:
        return make()
    except ValueError as error:
        raise UnreadableRecord(str(error)) from error
