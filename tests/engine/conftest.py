"""What the tests of runs share beside tests/conftest.py: their global state, and scenes to change."""

import shutil
from pathlib import Path

import pytest
import torch


@pytest.fixture(autouse=True)
def global_state(one_thread):
    """One thread for every run, and no trace of train.deterministic in the tests after it."""
    yield
    torch.use_deterministic_algorithms(False)


@pytest.fixture
def copied(scenes_root, tmp_path) -> Path:
    """Scenes to change, without a class graph of their own."""
    root = shutil.copytree(scenes_root, tmp_path / "scenes")
    (root / "class_graph.json").unlink()
    return root
