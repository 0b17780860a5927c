"""The state of a run: what goes into a checkpoint comes out, and weights that are not finite never do."""

import math
import shutil

import pytest
import torch

from irnet.engine import checkpoint
from irnet.engine.state import RunState
from irnet.errors import InputError
from tests.engine.tools import assert_same_tensors

CPU = torch.device("cpu")


@pytest.mark.parametrize("same_run", [True, False])
def test_a_restored_state_is_the_state(same_run, trained):
    saved = checkpoint.find(trained)
    state = RunState(saved.config, CPU, saved, same_run)
    assert (state.step, state.position, state.updating) == (4, tuple(saved.extra["position"]), False)
    assert (state.best, state.saved) == ((saved.extra["best"], 4) if same_run else (-1.0, None))
    again = state.to_checkpoint()
    assert_same_tensors(again.model, saved.model)
    assert_same_tensors(again.optimizer, saved.optimizer)
    assert again.extra["seconds"] > saved.extra["seconds"] and again.extra["data"] == saved.extra["data"]


def test_a_fresh_state(trained, tmp_path):
    state = RunState(checkpoint.find(trained).config, CPU)
    assert (state.step, state.position, state.best, state.saved) == (0, (0, 0), -1.0, None)
    state.save(tmp_path)
    state.save_best(tmp_path)
    last, best = (checkpoint.find(tmp_path, name) for name in (checkpoint.LAST, checkpoint.BEST))
    assert state.saved == 0 and last.extra["resumable"] and not best.extra["resumable"]
    assert_same_tensors(last.model, state.model.state_dict())


def test_a_state_goes_on_from_the_previous_checkpoint_in_the_place_of_a_damaged_one(trained, tmp_path):
    folder = shutil.copytree(trained, tmp_path / "run") / "checkpoints"
    (folder / checkpoint.LAST).write_bytes(b"damaged")
    saved = checkpoint.find(tmp_path / "run")
    RunState(saved.config, CPU, saved, same_run=True)
    assert (folder / "damaged.safetensors").read_bytes() == b"damaged"
    assert checkpoint.load(folder / checkpoint.LAST).step == 4 and not (folder / checkpoint.PREVIOUS).exists()


@pytest.mark.parametrize("moment", [True, False])
def test_what_is_not_finite_makes_no_checkpoint(moment, trained):
    saved = checkpoint.find(trained)
    state = RunState(saved.config, CPU, saved)
    weight = state.model.classifier.weight
    (state.optimizer.state[weight]["exp_avg"] if moment else weight.data)[0, 0] = math.nan
    with pytest.raises(InputError, match=r"after step 4 the weights are not finite \(classifier\.weight"):
        state.to_checkpoint()
    if moment:  # the weights alone are whole
        assert not state.to_checkpoint(with_optimizer=False).optimizer
