"""The largest micro-batch that fits: the search, the sizes that it reads, and runs that let it choose."""

import dataclasses
import shutil

import pytest
import torch
import yaml

from irnet.config import Config, DataConfig, TrainConfig, load, small
from irnet.data.registry import open_dataset
from irnet.engine import checkpoint, fit
from irnet.engine.memory import Footprint, Scene
from irnet.engine.state import RunState
from irnet.errors import InputError
from irnet.models.irnet import IRNet
from tests.conftest import TINY

SCENE = Scene(64, 64, (8,), 4)


@pytest.fixture
def plans(monkeypatch):
    """Plans in which an image takes 10 bytes, half with checkpointing, a part 100; the list of those that were made."""
    made = []

    def planned(config, scene, gpu=False):
        train = config.train
        made.append(train.grad_accum_steps)
        image = 5 if train.grad_checkpointing else 10
        return Footprint({"activations": 100 + image * train.batch_size // train.grad_accum_steps}, "add")

    monkeypatch.setattr(fit, "planned", planned)
    return made


def of(images, **more):
    return Config(train=TrainConfig(batch_size=images, **more))


@pytest.mark.parametrize(("memory", "micro"), [(1000, 12), (220, 12), (219, 6), (159, 4), (125, 2), (110, 1)])
def test_the_largest_that_fits_with_the_batch_kept(plans, memory, micro):
    config = of(12, grad_accum_steps=3)
    found = fit.largest(config, SCENE, memory, False)
    assert found.micro_batch == micro and found.config.train.batch_size == 12
    assert found.footprint.total <= memory and len(plans) <= 4
    assert config.train.grad_accum_steps == 3
    assert found.words == (
        f"train.batch_size=12 train.grad_accum_steps={12 // micro} train.amp=off train.grad_checkpointing=false"
    )


def test_none_that_fits(plans):
    found = fit.largest(of(12), SCENE, 109, False)
    assert found.footprint.total == 110 and found.micro_batch == 1


def test_what_would_fit_is_named(plans):
    config = of(4)
    assert fit.fitted(config, SCENE, 140, False).micro_batch == 4
    fits = "train.batch_size=4 train.grad_accum_steps=4 train.amp=off train.grad_checkpointing=true, 105 bytes"
    with pytest.raises(InputError, match=rf"fits into 105 bytes with these settings; this fits: {fits}$"):
        fit.fitted(config, SCENE, 105, False)
    with pytest.raises(InputError, match=rf"fits into 104 bytes; the least is {fits}: take smaller images"):
        fit.fitted(config, SCENE, 104, False)


def test_settings_that_take_least_already(plans):
    config = of(4, amp="bf16", grad_checkpointing=True)
    with pytest.raises(InputError, match=r"; the least is .*, 105 bytes: "):
        fit.fitted(config, SCENE, 104, False)


def test_one_part_may_take_less_than_several(monkeypatch):
    """Several parts hold all gradients, one does not: none of these fits in parts, and with checkpointing one does."""

    def planned(config, scene, gpu=False):
        train = config.train
        size = 40 if train.grad_accum_steps == 1 else 100
        return Footprint({"activations": size + 10 * (train.amp == "bf16") - train.grad_checkpointing}, "mm")

    monkeypatch.setattr(fit, "planned", planned)
    config = of(4)
    found = fit.largest(config, SCENE, 30, False)
    assert found.micro_batch == 4 and found.footprint.total == 40
    whole = "train.batch_size=4 train.grad_accum_steps=1 train.amp=off train.grad_checkpointing=true, 39 bytes"
    with pytest.raises(InputError, match=f"; this fits: {whole}$"):
        fit.fitted(config, SCENE, 39, False)
    with pytest.raises(InputError, match=f"; the least is {whole}: "):
        fit.fitted(config, SCENE, 38, False)


@pytest.mark.parametrize(("memory", "images"), [(1000, 64), (500, 40), (110, 1), (139, 3)])
@pytest.mark.parametrize("training", [False, True])
def test_the_most_images_that_an_evaluation_has_room_for(memory, images, training, monkeypatch):
    def plan(config, scene, images, gpu, within):
        return Footprint({"temporaries": 100 + 10 * images, "optimizer": 5 * within}, "add")

    monkeypatch.setattr(fit, "planned_evaluation", plan)
    scene = Scene(64, 64, (8,) * 100, 4)
    assert fit.evaluated_at_once(of(1), scene, memory + 5 * training, False, training) == images
    with pytest.raises(InputError, match=r"--memory: .* 64 x 64 pixels and 8 regions takes 1\d\d bytes, not 109 bytes"):
        fit.evaluated_at_once(of(1), scene, 109, False, training)
    assert fit.evaluated_at_once(of(1), Scene(64, 64, (8, 8), 4), 1000, False) == 2


def test_ways_begin_with_the_settings_as_they_are():
    pairs = [(c.train.amp, c.train.grad_checkpointing) for c in fit.ways(of(1))]
    assert pairs == [("off", False), ("off", True), ("bf16", False), ("bf16", True)]
    assert [c.train.amp for c in fit.ways(of(1, amp="fp16", grad_checkpointing=True))] == ["fp16"]


@pytest.mark.parametrize(
    ("text", "size"),
    [
        *(("8GiB", 8 * 2**30), ("8 gib", 8 * 2**30), ("7500MB", 7_500_000_000), ("1.5G", 1_500_000_000)),
        *(("512", 512), ("1", 1), ("0.002KiB", 2)),
    ],
)
def test_sizes(text, size):
    assert fit.read_memory(text) == size


@pytest.mark.parametrize("text", ["", "8 bananas", "-1GiB", "GiB", "0GiB", "nan", "0.2", "9" * 400, "8388608TiB"])
def test_what_is_no_size(text):
    with pytest.raises(InputError, match=r"--memory: .* is not a size; write for example 8GiB"):
        fit.read_memory(text)


@pytest.mark.parametrize(
    ("size", "text"),
    [(1023, "1023 bytes"), (1536, "1.50 KiB"), (5 * 2**20, "5.00 MiB"), (2**31, "2.00 GiB")],
)
def test_sizes_in_messages(size, text):
    assert fit.size_text(size) == text


def test_the_scene_of_a_data_set(scenes_root):
    data = open_dataset(DataConfig(name="scenes", root=str(scenes_root)), "train")
    config = small()
    config.data.root = str(scenes_root)
    scene = fit.scene_of(data, config)
    counts = [len(labels) for labels in data.image_labels()]
    assert scene.regions[0] == max(counts) and sum(scene.regions) == sum(counts)
    assert scene.classes == len(data.classes) and scene.edges.num_nodes == len(data.classes)
    assert (scene.height, scene.width) == tuple(data.image_sizes().max(0).values.tolist())
    assert scene.of(2) == list(scene.regions[:2])
    assert set(scene.sizes) == set(map(tuple, data.image_sizes().tolist()))


def test_a_run_lets_the_plan_choose(irnet, train_arguments, tmp_path):
    result = irnet.run([*train_arguments(tmp_path / "run", "train.grad_checkpointing=false"), "--memory", "1GiB"])
    chosen = "train.batch_size=4 train.grad_accum_steps=1 train.amp=off train.grad_checkpointing=false"
    assert f"planned for 1.00 GiB of memory: {chosen}" in result.err
    assert load(tmp_path / "run" / "config.yaml").train.grad_accum_steps == 1


def test_a_run_in_parts(irnet, train_arguments, tmp_path, scenes_root):
    config = small()
    for pair in TINY:
        key, value = pair.split("=")
        section, name = key.split(".")
        setattr(getattr(config, section), name, yaml.safe_load(value))
    config.data.root, config.train.batch_size, config.train.grad_accum_steps = str(scenes_root), 4, 2
    scene = fit.scene_of(open_dataset(config.data, "train"), config)
    two = fit.planned(config, scene).total
    irnet.run([*train_arguments(tmp_path / "run"), "--memory", f"{two}"])
    assert load(tmp_path / "run" / "config.yaml").train.grad_accum_steps == 2


def test_a_run_that_goes_on_is_planned_with_what_its_checkpoint_holds(trained, scenes_root, tmp_path):
    """Its class graph is the checkpoint's, whatever has become of the data's."""
    saved = checkpoint.find(trained)
    root = shutil.copytree(scenes_root, tmp_path / "scenes")
    (root / "class_graph.json").write_text("damaged")
    config = dataclasses.replace(saved.config, data=dataclasses.replace(saved.config.data, root=str(root)))
    state = RunState(config, torch.device("cpu"), saved, memory=2**30)
    assert state.model.graph is not None and state.config.train.grad_accum_steps == 1
    assert state.at_once == 4 == len(state.held_out)  # the evaluations within it are planned, too
    scene, held = fit.scene_of(state.data, config, state.model), state.model.graph.class_graph
    assert all(map(torch.equal, scene.edges.tensors(), held.tensors()))


def test_a_scene_has_the_word_vectors_of_its_model(scenes_root):
    config = small()
    config.data.root = str(scenes_root)
    data = open_dataset(config.data, "train")
    classes = len(data.classes)
    model = IRNet(config.model, classes, fit.made_up_edges(classes, types=3), torch.zeros(classes, 7))
    scene = fit.scene_of(data, config, model)
    assert (scene.vector_size, scene.edges.num_types) == (7, 3) and fit.scene_of(data, config).vector_size == 0


def test_a_run_that_fits_no_way(irnet, train_arguments, tmp_path):
    result = irnet.run([*train_arguments(tmp_path / "run"), "--memory", "10KiB"], code=2)
    assert result.err.splitlines()[-1].startswith("irnet: --memory: no step on images of ")
    assert "fits into 10.00 KiB; the least is train.batch_size=4 train.grad_accum_steps=" in result.err
