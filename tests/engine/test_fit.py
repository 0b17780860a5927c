"""The largest micro-batch that fits: the search, the sizes that it reads, and runs that let it choose."""

import pytest
import yaml

from irnet.config import Config, DataConfig, TrainConfig, load, small
from irnet.data.registry import open_dataset
from irnet.engine import fit
from irnet.engine.memory import Footprint, Scene
from irnet.errors import InputError
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
    assert found.footprint.total == 110 and found == fit.smallest(of(12), SCENE, False) and found.micro_batch == 1


def test_what_would_fit_is_named(plans, scenes_root):
    config = of(4)
    config.data = DataConfig(name="scenes", root=str(scenes_root), short_side=0)
    config.model.variant = "local"
    data = open_dataset(config.data, "train")
    assert fit.fitted(config, data, 140, False).micro_batch == 4
    fits = "train.batch_size=4 train.grad_accum_steps=4 train.amp=off train.grad_checkpointing=true, 0.00 MiB"
    with pytest.raises(InputError, match=rf"at a time does not fit into 0.00 MiB .*; this fits: {fits}$"):
        fit.fitted(config, data, 105, False)
    with pytest.raises(InputError, match=rf"; the least is {fits}: take smaller images"):
        fit.fitted(config, data, 104, False)


def test_ways_begin_with_the_settings_as_they_are():
    pairs = [(c.train.amp, c.train.grad_checkpointing) for c in fit.ways(of(1))]
    assert pairs == [("off", False), ("off", True), ("bf16", False), ("bf16", True)]
    assert [c.train.amp for c in fit.ways(of(1, amp="fp16", grad_checkpointing=True))] == ["fp16"]


@pytest.mark.parametrize(
    ("text", "size"),
    [("8GiB", 8 * 2**30), ("8 gib", 8 * 2**30), ("7500MB", 7_500_000_000), ("1.5G", 1_500_000_000), ("512", 512)],
)
def test_sizes(text, size):
    assert fit.read_memory(text) == size


@pytest.mark.parametrize("text", ["", "8 bananas", "-1GiB", "GiB", "0GiB", "nan"])
def test_what_is_no_size(text):
    with pytest.raises(InputError, match=r"--memory: .* is not a size; write for example 8GiB"):
        fit.read_memory(text)


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


def test_a_run_that_fits_no_way(irnet, train_arguments, tmp_path):
    result = irnet.run([*train_arguments(tmp_path / "run"), "--memory", "10KiB"], code=2)
    assert result.err.splitlines()[-1].startswith("irnet: --memory: one image of ")
    assert "the least is train.batch_size=4 train.grad_accum_steps=4 train.amp=bf16" in result.err
