"""Going on and starting from other runs: what has changed is said, the place in the data follows from images seen."""

import json
import shutil
from pathlib import Path

import pytest
import torch

from irnet import config as settings
from irnet.cli import main
from irnet.engine import checkpoint, train
from irnet.engine.build import DATA_TENSORS, build_model, open_dataset

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def copied(scenes_root, tmp_path) -> Path:
    """Scenes to change, without a class graph of their own."""
    root = shutil.copytree(scenes_root, tmp_path / "scenes")
    (root / "class_graph.json").unlink()
    return root


@pytest.fixture
def went_on(train_arguments, tmp_path, caplog):
    """Runs two steps on some data, then `change()`, then resumes with further words: what the resumed run logs."""

    def run(data: Path, change, *more: str, steps: int = 4, first: tuple[str, ...] = ()) -> str:
        output = tmp_path / "run"
        assert main(train_arguments(output, *first, data=data, steps=2)) == 0
        change()
        caplog.clear()
        assert main(train_arguments(output, *first, "--resume", *more, data=data, steps=steps)) == 0
        assert checkpoint.find(output).step == steps
        return caplog.text

    return run


def edit(root: Path, split: str, change) -> None:
    path = root / f"annotations/instances_{split}.json"
    table = json.loads(path.read_text())
    change(table)
    path.write_text(json.dumps(table))


def test_a_checkpoint_that_could_not_be_read_is_kept(trained, train_arguments, tmp_path):
    """It may be whole: a network's disk fails for a moment."""
    output = shutil.copytree(trained, tmp_path / "run")
    last = output / "checkpoints" / checkpoint.LAST
    last.write_bytes(content := last.read_bytes()[:-1])
    assert main(train_arguments(output, "--resume", steps=5)) == 0
    assert last.with_name("damaged.safetensors").read_bytes() == content
    assert checkpoint.load(last).step == 5


# ---------------------------------------------------------------------------------------------------- changed data


def label_added(table):
    image = table["images"][0]["id"]
    row = table["annotations"][0]
    for category in table["categories"]:  # the derived class graph becomes another, of another size
        table["annotations"].append(
            row | {"id": 9000 + category["id"], "image_id": image, "category_id": category["id"]}
        )


def image_removed(table):
    gone = table["images"].pop()["id"]
    table["annotations"] = [row for row in table["annotations"] if row["image_id"] != gone]


def labels_shifted(table):
    ids = [category["id"] for category in table["categories"]]
    for row in table["annotations"]:
        row["category_id"] = ids[(ids.index(row["category_id"]) + 1) % len(ids)]


def box_moved(table):
    table["annotations"][3]["bbox"][0] += 1


def image_renamed(table):
    table["images"][0]["file_name"], table["images"][1]["file_name"] = (
        table["images"][1]["file_name"],
        table["images"][0]["file_name"],
    )


@pytest.mark.parametrize("change", [label_added, image_removed, labels_shifted, box_moved, image_renamed])
@pytest.mark.parametrize("split", ["train", "val"])
def test_changed_annotations_are_told(change, split, copied, went_on):
    log = went_on(copied, lambda: edit(copied, split, change))
    told = [line for line in log.splitlines() if "have changed since the checkpoint" in line]
    assert len(told) == 1 and f"instances_{split}.json" in told[0]
    if change is image_removed:
        count = 8 if split == "train" else 4
        assert f"from {count} images with" in told[0] and f"to {count - 1} with" in told[0]


def test_run_goes_on_with_the_class_graph_of_its_checkpoint(copied, went_on, tmp_path):
    before = {}
    went_on(
        copied, lambda: (before.update(checkpoint.find(tmp_path / "run").model), edit(copied, "train", label_added))
    )
    after = checkpoint.find(tmp_path / "run")
    assert all(torch.equal(after.model[name], before[name]) for name in DATA_TENSORS if name in before)
    new = build_model(after.config, open_dataset(after.config.data, "train"))
    assert new.graph.graph_indices.shape != after.model["graph.graph_indices"].shape


def test_same_data_and_settings_say_nothing(copied, went_on):
    log = went_on(copied, lambda: edit(copied, "train", lambda table: table["annotations"].reverse()), steps=2)
    assert "have changed" not in log and "resumed with" not in log and "learning rate" not in log


# ------------------------------------------------------------------------------------------------- changed settings


def test_changed_settings_are_told(scenes_root, went_on):
    log = went_on(scenes_root, lambda: None, "train.lr=0.01", "loss.beta=0.75", "data.flip=true")
    for words in ("train.lr = 0.01, before 0.004", "loss.beta = 0.75, before 0.5", "data.flip = True, before False"):
        assert f"resumed with {words}" in log
    assert "resumed with train.steps = 4, before 2" in log and "model." not in log


def test_longer_cosine_schedule_is_told(scenes_root, went_on):
    log = went_on(scenes_root, lambda: None, steps=8)
    old, new = settings.small().train, settings.small().train
    old.steps, new.steps, old.warmup_steps, new.warmup_steps = 2, 8, 0, 0
    now, last, planned = (train.learning_rate(*at) for at in ((new, 3), (old, 2), (old, 3)))
    assert now > last > planned
    assert f"the learning rate goes on at {now:.3g}; the last was {last:.3g}" in log
    assert f"with the settings before it would be {planned:.3g}" in log


def test_lengthened_schedule_of_steps_says_nothing_of_the_rate(scenes_root, went_on):
    log = went_on(scenes_root, lambda: None, first=("train.cosine=false",))
    assert "resumed with train.steps" in log and "learning rate" not in log


@pytest.mark.parametrize("key", ["train.init_from", "data.class_graph", "data.word_vectors"])
def test_what_is_settled_cannot_be_changed(key, trained, train_arguments, refused, tmp_path):
    output = shutil.copytree(trained, tmp_path / "run")
    refused(train_arguments(output, "--resume", f"{key}=x", steps=6), f"was made with {key} = , not x")


# ------------------------------------------------------------------------------------------- the place in the data


def seen(monkeypatch) -> list[list[str]]:
    """The names of every batch that is trained on from now on."""
    names = []
    real = train.gradients

    def gradients(model, batch, *more):
        names.append(batch.names)
        return real(model, batch, *more)

    monkeypatch.setattr(train, "gradients", gradients)
    return names


@pytest.mark.parametrize(("batch", "position"), [(1, (0, 4)), (4, (0, 4)), (8, (0, 0)), (3, (0, 3))])
def test_place_in_the_data_follows_from_the_images_seen(batch, position, train_arguments, monkeypatch, tmp_path):
    """Two steps of two images of eight, then batches of another size."""
    output = tmp_path / "run"
    assert main(train_arguments(output, steps=2, batch=2)) == 0
    assert checkpoint.find(output).extra["position"] == [0, 4]
    names = seen(monkeypatch)
    left = -(-(8 - position[1]) // batch)
    assert main(train_arguments(output, "--resume", steps=2 + left, batch=batch)) == 0
    assert checkpoint.find(output).extra["position"] == [1, 0]
    assert sum(map(len, names)) == 8 - position[1]  # the epoch is gone through to its end
    resumed = names.copy()
    names.clear()
    assert main(train_arguments(tmp_path / "whole", steps=-(-8 // batch), batch=batch)) == 0
    assert resumed == names[position[1] // batch :]


def test_batch_size_changed_twice_goes_on_to_the_same_bits(train_arguments, tmp_path):
    """A run that has changed its batch size is resumed as exactly as any other."""
    for name, stops in (("one", (6,)), ("many", (3, 4, 5, 6))):
        output = tmp_path / name
        assert main(train_arguments(output, "train.cosine=false", steps=1, batch=3)) == 0
        for steps in stops:
            assert main(train_arguments(output, "train.cosine=false", "--resume", steps=steps, batch=2)) == 0
    one, many = (checkpoint.find(tmp_path / name) for name in ("one", "many"))
    assert one.extra["position"] == many.extra["position"]
    assert all(torch.equal(one.model[name], tensor) for name, tensor in many.model.items())


# ------------------------------------------------------------------------------------------------ nothing to resume


def test_resume_without_a_run_says_so(train_arguments, tmp_path, caplog):
    output = tmp_path / "run"
    assert main(train_arguments(output, "--resume", steps=1)) == 0
    assert f"{output} holds no run to go on with: a new one starts" in caplog.text
    caplog.clear()
    assert main(train_arguments(output, "--resume", steps=2)) == 0
    assert "holds no" not in caplog.text and "going on from step 1" in caplog.text
    shutil.rmtree(output / "checkpoints")
    assert main(train_arguments(output, "--resume", steps=1)) == 0
    assert f"{output} holds no checkpoint to go on from: the run starts anew with its settings" in caplog.text


# ---------------------------------------------------------------------------------------- another run's weights


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
