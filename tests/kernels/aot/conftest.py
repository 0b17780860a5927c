"""Fixtures of what works without a GPU."""

from pathlib import Path

import pytest

from tests.kernels.aot.sources import LIBRARY, write


@pytest.fixture(scope="module")
def library(tmp_path_factory) -> Path:
    """A Triton module that uses Triton's own library, a function of its own and methods of tensors."""
    return write(tmp_path_factory.mktemp("triton"), "library.py", LIBRARY)
