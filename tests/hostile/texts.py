"""Targets: what etcd holds, codes of currencies, the CSV of `replay`."""

from __future__ import annotations

import tempfile
from pathlib import Path

from cluster import membership_codec as codec
from cluster.membership import Currency, Member, ShardInfo
from cluster.topology import Topology, TopologyError
from router.routing import CURRENCY_CODE
from scripts.replay_file import OPTIONAL, REQUIRED, ReplayFileError, read_transfers
from tests.hostile.target import Target, join_parts, split_parts

CLUSTER = "hostile"

_CSV = ",".join((*REQUIRED, *OPTIONAL)) + "\n"


def check_etcd(data: bytes) -> None:
    """A key and its value: a record that can be written again, or UnreadableRecord."""
    key_bytes, value = split_parts(data, 2)
    key = codec.prefix(CLUSTER) + key_bytes.decode("utf-8", "replace")
    try:
        record = codec.decode(CLUSTER, key, value)
    except codec.UnreadableRecord:
        return
    if isinstance(record, Topology):
        assert Topology.from_json(record.to_json()) == record
    elif isinstance(record, Member):
        again = codec.decode_member(record.role, record.id, codec.encode_member(record))
        assert again == record
    elif isinstance(record, ShardInfo):
        again_shard = codec.decode_shard(str(record.shard_id), codec.encode_shard(record))
        assert again_shard == record
    elif isinstance(record, Currency):
        again_currency = codec.decode_currency(record.code, codec.encode_currency(record))
        assert again_currency == record


def etcd_seeds() -> list[bytes]:
    """One of every kind."""
    member = Member("shard_node", "node-1", "127.0.0.1:4000", "0.1.0", 1_700_000_000_000_000)
    shard = ShardInfo(3, 7, "node-1", ("node-2",))
    currency = Currency("GOLD", 1, 2, "gold")
    pairs = (
        ("topology", Topology.even([1, 2, 3]).to_json()),
        ("members/shard_node/node-1", codec.encode_member(member)),
        ("shards/3", codec.encode_shard(shard)),
        ("currencies/GOLD", codec.encode_currency(currency)),
        ("something/else", b"{}"),
        # Found once, or nearly: numbers beyond what Python converts, depth, halves of letters.
        ("shards/" + "9" * 5_000, codec.encode_shard(shard)),
        ("shards/3", b"[" * 60_000),
        ("topology", b'{"version":' + b"9" * 4_000 + b',"slots":[' + b"1," * 4_095 + b"1]}"),
        ("shards/3", b'{"epoch":' + b"9" * 4_000 + b',"primary":"node-1","standbys":[]}'),
        ("members/router/a", b'{"address":"\\ud800","version":"1","started_us":1}'),
        ("members/router/a", b'{"address":"a","version":"1","started_us":99999999999999999999}'),
        ("currencies/GOLD", b'{"number":1,"scale":2,"name":"\\ud800"}'),
    )
    return [join_parts((key.encode(), value)) for key, value in pairs]


def check_topology(data: bytes) -> None:
    """A topology, or TopologyError."""
    try:
        found = Topology.from_json(data)
    except TopologyError:
        return
    assert Topology.from_json(found.to_json()) == found


def topology_seeds() -> list[bytes]:
    """Small and large ones."""
    return [Topology.even([1, 2, 3]).to_json(), b'{"version":1,"slots":[1,2]}', b"[" * 60_000]


def check_currency(data: bytes) -> None:
    """Membership, which registers codes, and router, which reads them, agree on what is one."""
    code = data.decode("utf-8", "replace")
    try:
        Currency(code, 1, 0, "")
        is_one = True
    except ValueError:
        is_one = False
    assert is_one == (CURRENCY_CODE.fullmatch(code) is not None), f"{code!r}: {is_one}"


def currency_seeds() -> list[bytes]:
    """Codes, and what is nearly one."""
    return [b"GOLD", b"A", b"A_1234567890_XYZ", b"gold", b"\xc3\x84", b"GOLD\n", b""]


def check_csv(data: bytes) -> None:
    """A file of transfers: read to its end, or ReplayFileError."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "file.csv"
        path.write_bytes(data)
        try:
            found = list(read_transfers(path))
        except ReplayFileError:
            return
    assert all(len(each.transfer_id) == 16 for each in found)
    assert all(0 <= each.import_time_us < 2**63 for each in found)


def csv_seeds() -> list[bytes]:
    """Rows that are well-formed, and quoting."""
    rows = (
        "a-1,1,2,GOLD,100,,,,\n",
        "6c9f0c1e-7b0d-5d6c-9a55-2f1d6a3f7f10,1,2,GOLD,100,SALE,77,note,2026-01-02T03:04:05Z\n",
        '"x, y",9223372036854775807,2,GOLD,1,FEE,18446744073709551615,"a ""b""",2026-01-02\n',
    )
    return [(_CSV + row).encode() for row in rows] + [b"\xef\xbb\xbf" + _CSV.encode()]


TARGETS = (
    Target("etcd", check_etcd, etcd_seeds),
    Target("topology", check_topology, topology_seeds),
    Target("currency", check_currency, currency_seeds),
    Target("csv", check_csv, csv_seeds),
)
