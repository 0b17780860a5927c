"""From a config to data and models: seeds, splits without regions, and another run's weights."""

import shutil
from pathlib import Path

import pytest
import torch

from irnet.cli import main
from irnet.data.registry import open_dataset
from irnet.engine import checkpoint
from irnet.engine.build import DATA_TENSORS, build_model
from tests.engine.tools import assert_same_tensors, edit


def test_fresh_model_depends_on_the_seed_alone(trained):
    config = checkpoint.find(trained).config
    data = open_dataset(config.data, "train")
    torch.manual_seed(5)
    one = build_model(config, data).state_dict()
    torch.manual_seed(6)
    state = torch.get_rng_state()
    assert_same_tensors(one, build_model(config, data).state_dict())
    assert torch.equal(state, torch.get_rng_state())
    config.train.seed += 1
    assert not torch.equal(one["classifier.weight"], build_model(config, data).state_dict()["classifier.weight"])


@pytest.mark.parametrize("split", ["train", "val"])
def test_split_without_any_box_is_refused_before_training(split, scenes_root, train_arguments, refused, tmp_path):
    root = tmp_path / "scenes"
    shutil.copytree(scenes_root, root)
    edit(root, split, lambda table: [a.update(iscrowd=1) for a in table["annotations"]])
    refused(train_arguments(tmp_path / "run", data=root), f"instances_{split}.json", "hold no region", "iscrowd")
    assert not checkpoint.exists(tmp_path / "run")


# ----------------------------------------------------------------------------------------------- another run's weights


def start(trained, train_arguments, output: Path, *more: str, data: Path | None = None) -> checkpoint.Checkpoint:
    """The state before the first step of a run that starts from the weights of `trained`."""
    arguments = train_arguments(output, "--init-from", str(trained), *more, steps=0)
    if data:
        arguments[arguments.index("--data-root") + 1] = str(data)
    assert main(arguments) == 0
    return checkpoint.find(output)


def test_init_from_takes_all_where_all_fits(trained, train_arguments, tmp_path, caplog):
    found, source = start(trained, train_arguments, tmp_path / "run"), checkpoint.find(trained)
    assert all(torch.equal(found.model[name], tensor) for name, tensor in source.model.items())
    assert found.step == 0 and not found.optimizer and found.config.train.init_from == str(trained)
    assert "tensors taken" in caplog.text and "not taken" not in caplog.text


@pytest.mark.parametrize("change", ["more", "renamed", "swapped"])
def test_init_from_a_run_on_other_classes(change, copied, trained, train_arguments, tmp_path, caplog):
    def categories(table):
        rows = table["categories"]
        if change == "more":
            rows.append(rows[0] | {"id": 99, "name": "unicorn"})
        elif change == "renamed":
            rows[3]["name"] = "unicorn"
        else:
            rows[3]["name"], rows[4]["name"] = rows[4]["name"], rows[3]["name"]

    for split in ("train", "val"):
        edit(copied, split, categories)
    found, source = start(trained, train_arguments, tmp_path / "run", data=copied), checkpoint.find(trained)
    fresh = build_model(found.config, open_dataset(found.config.data, "train")).state_dict()
    bound = [name for name in fresh if "classifier." in name or "map_logits" in name or name == "graph.class_features"]
    assert len(bound) == 9
    for name, tensor in fresh.items():
        if name in DATA_TENSORS:
            continue
        if source.model[name].shape != tensor.shape and name not in bound:
            assert name == "graph.layers.0.semantic" and f"not taken: {name} ([3, 4, 4] there" in caplog.text
            continue  # the derived class graph has another number of relations
        assert torch.equal(found.model[name], tensor if name in bound else source.model[name]), name
        assert (f"not taken: {name} (other classes)" in caplog.text) == (name in bound)


def test_init_from_a_model_of_another_size(trained, train_arguments, tmp_path, caplog):
    found = start(trained, train_arguments, tmp_path / "run", "model.hidden=16")
    source = checkpoint.find(trained)
    assert "not taken: local.read1.weight ([8, 16] there, [16, 16] here)" in caplog.text
    assert torch.equal(found.model["local.gru.new_x"], source.model["local.gru.new_x"])
    found = start(trained, train_arguments, tmp_path / "conv", "--variant", "conv")
    assert "not taken: local.initial (only there)" in caplog.text
    assert torch.equal(found.model["classifier.weight"], source.model["classifier.weight"])
    start(tmp_path / "conv", train_arguments, tmp_path / "back")
    assert "not taken: local.initial (only here)" in caplog.text


def test_init_from_what_is_no_run(trained, train_arguments, refused, tmp_path):
    refused(train_arguments(tmp_path / "run", "--init-from", str(tmp_path / "no")), tmp_path / "no", "no checkpoint")
    (tmp_path / "x.safetensors").write_bytes(b"x" * 100)
    damaged = ["--init-from", str(tmp_path / "x.safetensors")]
    refused(train_arguments(tmp_path / "run", *damaged), "x.safetensors", "is truncated or no checkpoint")
    saved = checkpoint.find(trained)
    saved.model = {f"other.{name}": tensor for name, tensor in saved.model.items()}
    checkpoint.save(tmp_path / "x.safetensors", saved)
    refused(train_arguments(tmp_path / "run", *damaged), "x.safetensors", "none of its weights fits the model")
    assert not checkpoint.exists(tmp_path / "run")


def test_init_from_is_no_resume(trained, train_arguments, tmp_path):
    """Going on with such a run does not take the weights again."""
    output = tmp_path / "run"
    start(trained, train_arguments, output)
    first = [*train_arguments(output, "--init-from", str(trained), "train.cosine=false", steps=2)]
    shutil.rmtree(output)
    assert main(first) == 0
    assert main([*first, "--resume", "train.steps=3"]) == 0
    assert checkpoint.find(output).step == 3
