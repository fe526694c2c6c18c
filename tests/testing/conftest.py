"""How a contract is held against a component, and what it must then say."""

from __future__ import annotations

import pytest


def _held_to(contract, component, **attributes):
    def make(self, *positional):
        return component(*positional)

    return type(component.__name__, (contract,), {"make": make, **attributes})()


@pytest.fixture
def held_to():
    """A contract with a component as its `make`."""
    return _held_to


@pytest.fixture
def passes():
    """Run all tests of a contract."""

    def run(contract):
        for name in dir(contract):
            if name.startswith("test_"):
                getattr(contract, name)()

    return run


@pytest.fixture
def catches():
    """One test fails: with the contract's own words, or with an error of the component's."""

    def run(contract, test, message):
        with pytest.raises(Exception, match=message):
            getattr(contract, test)()

    return run


@pytest.fixture
def catch_all():
    """Every test of a contract has a fault that it catches."""

    def run(contract, faults):
        tests = {name for name in dir(contract) if name.startswith("test_")}
        assert {test for _, test, _ in faults} == tests

    return run
