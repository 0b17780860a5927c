"""Going on from a checkpoint: what is refused, what has changed is said, damaged files are kept."""

import shutil
import signal
from pathlib import Path

import pytest
import torch

from irnet import config as settings
from irnet.cli import main
from irnet.data.registry import open_dataset
from irnet.engine import checkpoint, distributed
from irnet.engine.build import DATA_TENSORS, build_model
from irnet.engine.optim import learning_rate
from irnet.engine.state import RunState
from tests.engine.tools import DIE_RENAMING, assert_same_tensors, edit, lines, losses_of


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


# ----------------------------------------------------------------------------------------------- runs that are refused


def test_run_without_resume_leaves_the_run_there_alone(trained, train_arguments, refused, tmp_path):
    output = tmp_path / "run"
    shutil.copytree(trained, output)
    before = {p: p.read_bytes() for p in output.rglob("*") if p.is_file()}
    refused(train_arguments(output), output, "already holds a run", "--resume")
    (output / "checkpoints" / checkpoint.LAST).unlink()  # as a run killed between two renames leaves it
    before.pop(output / "checkpoints" / checkpoint.LAST)
    refused(train_arguments(output), output, "already holds a run", "--resume")
    assert {p: p.read_bytes() for p in output.rglob("*") if p.is_file()} == before


def test_resume_from_another_run_does_not_overwrite_the_one_there(trained, train_arguments, refused, tmp_path):
    output = tmp_path / "run"
    shutil.copytree(trained, output)
    refused(train_arguments(output, "--resume", str(trained), steps=6), output, "already holds a run")
    other = tmp_path / "fork"
    assert main(train_arguments(other, "--resume", str(trained), steps=6)) == 0
    assert checkpoint.find(other).step == 6 and [line["step"] for line in lines(other)] == [5, 6]


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (["model.hidden=16"], ["model.hidden = 8, not 16"]),
        (["--variant", "local"], ["model.variant = full, not local"]),
        (["train.optimizer=sgd"], ["train.optimizer = adamw, not sgd"]),
    ],
)
def test_resume_with_other_settings(trained, train_arguments, refused, tmp_path, more, words):
    output = tmp_path / "run"
    shutil.copytree(trained, output)
    refused(train_arguments(output, "--resume", *more, steps=6), checkpoint.LAST, *words, "leave it as it was")
    assert_same_tensors(checkpoint.find(output).model, checkpoint.find(trained).model)
    assert losses_of(output) == losses_of(trained)


def test_resume_from_weights_alone(trained, train_arguments, refused, tmp_path):
    best = trained / "checkpoints" / checkpoint.BEST
    refused(train_arguments(tmp_path / "new", "--resume", str(best)), best, "no state of the optimiser")


def test_resume_with_other_word_vectors(trained, train_arguments, refused, tmp_path):
    from safetensors.torch import save_file

    save_file({"vectors": torch.ones(19, 3)}, tmp_path / "words.safetensors")
    more = ["--resume", str(trained), f"data.word_vectors={tmp_path / 'words.safetensors'}"]
    refused(train_arguments(tmp_path / "new", *more), checkpoint.LAST, "was made with data.word_vectors = , not")


@pytest.mark.parametrize("key", ["train.init_from", "data.class_graph", "data.word_vectors"])
def test_what_is_settled_cannot_be_changed(key, trained, train_arguments, refused, tmp_path):
    output = shutil.copytree(trained, tmp_path / "run")
    refused(train_arguments(output, "--resume", f"{key}=x", steps=6), f"was made with {key} = , not x")


# ------------------------------------------------------------------------------------------------- damaged checkpoints


def test_a_checkpoint_that_could_not_be_read_is_kept(trained, train_arguments, tmp_path):
    """It may be whole: a network's disk fails for a moment."""
    output = shutil.copytree(trained, tmp_path / "run")
    last = output / "checkpoints" / checkpoint.LAST
    last.write_bytes(content := last.read_bytes()[:-1])
    assert main(train_arguments(output, "--resume", steps=5)) == 0
    assert last.with_name("damaged.safetensors").read_bytes() == content
    assert checkpoint.load(last).step == 5


def test_going_on_from_the_previous_never_leaves_only_damaged_ones(trained, train_arguments, irnet, tmp_path):
    output = tmp_path / "run"
    shutil.copytree(trained, output)
    last = output / "checkpoints" / checkpoint.LAST
    last.write_bytes(last.read_bytes()[:-100])
    die = DIE_RENAMING.format(name="/last.safetensors", at=2)  # the first puts the previous in its place
    irnet.run(train_arguments(output, "--resume", steps=8), die, code=-signal.SIGKILL)
    assert checkpoint.find(output).step == 4


def test_of_several_processes_the_first_alone_puts_the_previous_in_its_place(trained, tmp_path, monkeypatch):
    output = tmp_path / "run"
    shutil.copytree(trained, output)
    last = output / "checkpoints" / checkpoint.LAST
    last.write_bytes(last.read_bytes()[:-100])
    monkeypatch.setattr(distributed, "check_alike", lambda *_: None)  # there is no other process to ask
    for rank, names in ((1, [checkpoint.LAST, checkpoint.PREVIOUS]), (0, ["damaged.safetensors", checkpoint.LAST])):
        resume = checkpoint.find(output)
        monkeypatch.setattr(distributed, "rank", lambda rank=rank: rank)
        RunState(resume.config, torch.device("cpu"), resume, same_run=True)
        there = {path.name for path in last.parent.iterdir()} - {checkpoint.BEST}
        assert there == set(names)
    assert checkpoint.find(output).source == last


def test_both_checkpoints_damaged(trained, train_arguments, refused, tmp_path):
    output = tmp_path / "run"
    shutil.copytree(trained, output)
    for name in (checkpoint.LAST, checkpoint.PREVIOUS):
        (output / "checkpoints" / name).write_bytes(b"x" * 50)
    refused(train_arguments(output, "--resume", steps=6), checkpoint.PREVIOUS, "is truncated or no checkpoint")


# -------------------------------------------------------------------------------------------------------- changed data


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
def test_changed_annotations_are_reported(change, split, copied, went_on):
    log = went_on(copied, lambda: edit(copied, split, change))
    reports = [line for line in log.splitlines() if "have changed since the checkpoint" in line]
    assert len(reports) == 1 and f"instances_{split}.json" in reports[0]
    if change is image_removed:
        count = 8 if split == "train" else 4
        assert f"from {count} images with" in reports[0] and f"to {count - 1} with" in reports[0]


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


# ---------------------------------------------------------------------------------------------------- changed settings


def test_resume_takes_the_settings_of_the_run(trained, tmp_path, capsys):
    output = tmp_path / "run"
    shutil.copytree(trained, output)
    assert main(["train", "--output-dir", str(output), "--resume", "train.steps=5"]) == 0
    assert checkpoint.find(output).config.model == checkpoint.find(trained).config.model
    assert checkpoint.find(output).step == 5
    (output / "checkpoints").rename(tmp_path / "gone")  # as a run killed before its first checkpoint leaves it
    assert main(["train", "--output-dir", str(output), "--resume", "--steps", "2"]) == 0
    assert checkpoint.find(output).config.model == checkpoint.find(trained).config.model
    assert [line["step"] for line in lines(output)] == [1, 2]


def test_changed_settings_are_reported(scenes_root, went_on):
    log = went_on(scenes_root, lambda: None, "train.lr=0.01", "loss.beta=0.75", "data.flip=true")
    for words in ("train.lr = 0.01, before 0.004", "loss.beta = 0.75, before 0.5", "data.flip = True, before False"):
        assert f"resumed with {words}" in log
    assert "resumed with train.steps = 4, before 2" in log and "model." not in log


def test_longer_cosine_schedule_is_reported(scenes_root, went_on):
    log = went_on(scenes_root, lambda: None, steps=8)
    old, new = settings.small().train, settings.small().train
    old.steps, new.steps, old.warmup_steps, new.warmup_steps = 2, 8, 0, 0
    now, last, planned = (learning_rate(*at) for at in ((new, 3), (old, 2), (old, 3)))
    assert now > last > planned
    assert f"the learning rate goes on at {now:.3g}; the last was {last:.3g}" in log
    assert f"with the settings before it would be {planned:.3g}" in log


def test_lengthened_schedule_of_steps_says_nothing_of_the_rate(scenes_root, went_on):
    log = went_on(scenes_root, lambda: None, first=("train.cosine=false",))
    assert "resumed with train.steps" in log and "learning rate" not in log


# --------------------------------------------------------------------------------------------------- nothing to resume


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
