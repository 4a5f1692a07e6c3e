"""Clients: they want something, ask for it under one key, and ask again until they know.

They ask any coordinator, or the shard itself when only one is concerned; sometimes two at once, and
sometimes once more though they know already. Nothing of what they do is trusted by anybody.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from cluster.packed import BODY_BYTES, GROUP_RESULT, KEY_BYTES, MEMBER
from coordinator.actions import Status
from shard_node.legs import split_members
from tests.simulation.world import MS, SECOND, Process

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.simulation.coordinators import Coordinator
    from tests.simulation.shards import Shard
    from tests.simulation.world import World

TRIES_MAX: Final = 60
"""More is not bad luck. After the faults a few are enough."""


PROMPT_US: Final = MS, 600 * MS
LAZY_US: Final = 10 * SECOND, 20 * SECOND
"""How long clients wait before they ask again, at the least and at the most."""


@dataclass(eq=False)
class Intent:
    """What a client wants.

    Attributes:
        name: in the trace.
        members, metadata: packed; members name their shards.
        is_group: whether it is of groups' kind.
        tries: how often it was asked for.
        results: what the client has heard, unpacked `GROUP_RESULT`.
        is_known: whether it knows how it ended.
        repeats: how often it will still ask though it knows.
    """

    name: str
    members: bytes
    metadata: bytes
    is_group: bool
    tries: int = 0
    results: list[tuple[int, ...]] = field(default_factory=list)
    is_known: bool = False
    repeats: int = 0

    @property
    def bodies(self) -> list[bytes]:
        """What it asks for."""
        return [each for each, _, _ in MEMBER.iter_unpack(self.members)]

    @property
    def key(self) -> bytes:
        """What it is known under."""
        return self.members[:KEY_BYTES]

    @property
    def home(self) -> int:
        """The shard of its first source."""
        shard: int = MEMBER.unpack_from(self.members)[1]
        return shard

    @property
    def shards(self) -> set[int]:
        """All that it touches."""
        return {shard for _, *both in MEMBER.iter_unpack(self.members) for shard in both}

    def legs(self) -> list[tuple[int, bytes, bool]]:
        """(shard, body, whether incoming) of each."""
        found: list[tuple[int, bytes, bool]] = []
        for body, source_shard, destination_shard in MEMBER.iter_unpack(self.members):
            found += [(source_shard, body, False), (destination_shard, body, True)]
        return found


class Clients(Process):
    """All of them; they never crash, since a client that did would only be one that asks no more.

    Args:
        world: what they are in.
        shards, coordinators: whom they ask.
        on_local: hears every answer of a shard at the moment it is given.
        pauses_us: before they ask again, at the least and at the most.
    """

    def __init__(
        self,
        world: World,
        shards: dict[int, Shard],
        coordinators: list[Coordinator],
        on_local: Callable[[Intent, bytes], None],
        pauses_us: tuple[int, int],
    ) -> None:
        super().__init__(world, "clients")
        self._shards = shards
        self._coordinators = coordinators
        self._on_local = on_local
        self._pauses_us = pauses_us
        self.intents: list[Intent] = []
        self.is_up = True

    @property
    def are_done(self) -> bool:
        """Whether all know how it ended."""
        return all(each.is_known and not each.repeats for each in self.intents)

    def want(self, intent: Intent, delay_us: int) -> None:
        """Lets somebody want something from some moment on."""
        self.intents.append(intent)
        self.world.after(delay_us, f"{intent.name} is wanted", lambda: self._ask(intent))
        if self.world.chance(0.2):
            self.world.after(delay_us + MS, f"{intent.name} twice", lambda: self._ask(intent))

    def _ask(self, intent: Intent) -> None:
        world, rng = self.world, self.world.rng
        intent.tries += 1
        assert intent.tries < TRIES_MAX, f"{intent.name} is never answered"
        time_us = rng.choice((30 * MS, 300 * MS, SECOND, 3 * SECOND))
        label = f"{intent.name}, {intent.tries}"
        over: list[bool] = []

        def heard(result: bytes) -> None:
            if not over:
                over.append(True)
                patience.cancel()
                self._hear(intent, GROUP_RESULT.unpack(result))

        def give(result: bytes) -> None:
            world.send(f"{label}: {result.hex()}", self, lambda: heard(result))

        patience = world.after(
            time_us + 50 * MS, f"{label}: unheard", lambda: self._unheard(intent, over)
        )
        if len(intent.shards) == 1:
            shard = self._shards[intent.home]
            world.send(label, shard, lambda: self._ask_shard(shard, intent, give))
        else:
            coordinator = rng.choice(self._coordinators)
            world.send(label, coordinator, lambda: coordinator.execute(intent, time_us, give))

    def _ask_shard(self, shard: Shard, intent: Intent, give: Callable[[bytes], None]) -> None:
        def answer(result: bytes) -> None:
            self._on_local(intent, result)
            give(result)

        if intent.is_group:
            shard.execute_group(split_members(intent.members, intent.metadata), answer)
        else:
            shard.execute(intent.members[:BODY_BYTES], intent.metadata, answer)

    def _unheard(self, intent: Intent, over: list[bool]) -> None:
        if not over:
            over.append(True)
            self._ask_later(intent)

    def _hear(self, intent: Intent, result: tuple[int, ...]) -> None:
        intent.results.append(result)
        if result[0] == Status.FAULT:
            self._ask_later(intent)
            return
        intent.is_known = True
        if intent.repeats:
            intent.repeats -= 1
            self._ask_later(intent)

    def _ask_later(self, intent: Intent) -> None:
        if not intent.is_known or intent.repeats:
            pauses_us = PROMPT_US if self.world.is_healed else self._pauses_us
            pause_us = self.world.rng.randrange(*pauses_us)
            self.world.after(pause_us, f"{intent.name} again", lambda: self._ask(intent))
