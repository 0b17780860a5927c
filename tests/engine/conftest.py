"""What the tests of runs share beside tests/conftest.py: their global state, and scenes to change."""

import shutil
from pathlib import Path

import pytest
import torch

from tests.engine.groups import EVALS, Group, recording


@pytest.fixture(autouse=True)
def global_state():
    """No trace of train.deterministic in the tests after a run."""
    yield
    torch.use_deterministic_algorithms(False)


@pytest.fixture
def copied(scenes_root, tmp_path) -> Path:
    """Scenes to change, without a class graph of their own."""
    root = shutil.copytree(scenes_root, tmp_path / "scenes")
    (root / "class_graph.json").unlink()
    return root


@pytest.fixture
def group(irnet):
    """Starts groups of `irnet` processes, see `Group`."""
    return lambda *arguments, **options: Group(irnet, *arguments, **options)


@pytest.fixture(scope="session")
def undisturbed(tmp_path_factory, train_arguments, irnet) -> Path:
    """Not to be changed: a folder with `run`, of two processes and seven steps, and the record of its images."""
    folder = tmp_path_factory.mktemp("undisturbed")
    words = train_arguments(folder / "run", *EVALS, steps=7, batch=3)
    Group(irnet, words, 2, recording(folder / "images.jsonl")).end()
    return folder
