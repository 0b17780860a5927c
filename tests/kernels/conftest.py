"""Fixtures of the operator tests."""

import pytest
import torch


@pytest.fixture(autouse=True)
def one_thread():
    """The problems here are tiny: threads only slow them. Tests about threads set their own number."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
