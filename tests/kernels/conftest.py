"""Fixtures of the operator tests."""

import pytest


@pytest.fixture(autouse=True)
def one_thread(one_thread):
    """The problems here are tiny: threads only slow them. Tests about threads set their own number."""
