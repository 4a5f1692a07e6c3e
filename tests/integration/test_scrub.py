"""A real node whose disk changes under it comes upon that by itself."""

import os
import random
from pathlib import Path

from cluster.packed import BODY_BYTES
from tests.support import eventually
from tests.support.nodes import Load, running_node

ACCOUNTS = 50
REFERENCE_AT = 40  # in a body: what no question asked here reads


def flip_in_place(path: Path, value: bytes, at: int) -> int:
    """Flip a bit wherever a file has a value, while others have it mapped; return how often."""
    content, found = path.read_bytes(), 0
    descriptor = os.open(path, os.O_WRONLY)
    try:
        start = content.find(value)
        while start >= 0:
            os.pwrite(descriptor, bytes([content[start + at] ^ 1]), start + at)
            found += 1
            start = content.find(value, start + 1)
    finally:
        os.close(descriptor)
    return found


async def test_a_node_ends_when_its_scrub_comes_upon_damage(
    tmp_path: Path, rng: random.Random
) -> None:
    async with running_node(tmp_path, "--scrub-period-s=1") as node:
        await node.open_accounts(ACCOUNTS)
        load = Load(node, rng, ACCOUNTS)
        bodies = load.make()
        await load.send(bodies)
        await eventually(lambda: len(node.events("scrubbed")) >= 1, "a pass ends")
        status = await node.status()
        assert status.scrub_ended_us > 0
        assert status.scrub_total > 0
        assert flip_in_place(node.data / "log" / "data.mdb", bodies[:BODY_BYTES], REFERENCE_AT)
        assert await node.ended() == 70
        (fatal,) = node.events("fatal")
        assert "does not have the hash it was written with" in fatal["reason"]
        mark = (node.data / "DAMAGED").read_text(encoding="utf-8")
        assert mark in fatal["reason"]
        node.spawn()
        assert await node.ended() == 2, "no start serves what is marked"


async def test_a_node_without_a_scrub_says_so(tmp_path: Path) -> None:
    async with running_node(tmp_path, "--scrub-mib-s=0") as node:
        status = await node.status()
        assert (status.scrub_total, status.scrub_ended_us) == (0, 0)
        assert await node.stop() == 0
