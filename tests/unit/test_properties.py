"""The rig that plays property tests for long knows them by name."""

from importlib import import_module

from tests.properties import PROPERTIES


def test_every_test_that_it_names_is_there() -> None:
    for module, names in PROPERTIES.items():
        assert set(names) <= vars(import_module(f"tests.unit.{module}")).keys()
