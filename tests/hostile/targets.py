"""All targets, by name."""

from tests.hostile import calls, messages, stored, streams, texts

TARGETS = {
    target.name: target
    for room in (stored, calls, streams, messages, texts)
    for target in room.TARGETS
}
