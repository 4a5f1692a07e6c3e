"""All targets, by name."""

from tests.hostile import calls, messages, stored, texts

TARGETS = {
    target.name: target
    for target in (*stored.TARGETS, *calls.TARGETS, *messages.TARGETS, *texts.TARGETS)
}
