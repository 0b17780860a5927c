"""Those that follow a run: what TensorBoard reads back is metrics.jsonl, no step is there twice, and pictures."""

import builtins
import io
import os
import shutil
import signal
import sys
import threading
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from irnet.cli import main
from irnet.engine import events
from irnet.engine.events import scalars_of
from tests.engine.tools import DIE_WRITING, LIMIT, logged

EVALS = ("--tensorboard", "train.eval_every=2")


@pytest.fixture
def read():
    """Reads the scalars of a run as (tag, step) -> value, none of which may be there twice, and its pictures."""
    accumulator = pytest.importorskip(
        "tensorboard.backend.event_processing.event_accumulator", reason="tensorboard is not installed"
    )

    def run(output):
        found = accumulator.EventAccumulator(str(output / "tensorboard"), size_guidance={"scalars": 0, "images": 0})
        tags = found.Reload().Tags()
        scalars = [(tag, event.step, event.value) for tag in tags["scalars"] for event in found.Scalars(tag)]
        pictures = [(tag, event) for tag in tags["images"] for event in found.Images(tag)]
        assert len({(tag, step) for tag, step, _ in scalars}) == len(scalars)
        assert len({(tag, event.step) for tag, event in pictures}) == len(pictures)
        return {(tag, step): value for tag, step, value in scalars}, pictures

    return run


def expected(output) -> dict:
    """What metrics.jsonl holds, in the float32 of an event."""
    scalars = {(tag, line["step"]): value for line in logged(output) for tag, value in scalars_of(line).items()}
    return {key: float(np.float32(value)) for key, value in scalars.items()}


def test_names():
    steps = scalars_of({"step": 3, "lr": 0.1, "loss": 2.0, "peak_memory": 7})
    assert steps == {"train/lr": 0.1, "train/loss": 2.0, "train/peak_memory": 7}
    metrics = {"final": {"class_ap": 0.5}, "local 1": {"class_ap": 0.4}}
    line = {"step": 3, "split": "val", "images": 4, "regions": 5, "metrics": metrics, "attention": {"local 1": 1.0}}
    assert scalars_of(line) == {"class_ap/final": 0.5, "class_ap/local_1": 0.4, "attention/local_1": 1.0}


def test_events_are_metrics_jsonl(read, train_arguments, tmp_path):
    output = tmp_path / "run"
    assert main(train_arguments(output, *EVALS, "train.vis=2", steps=3)) == 0
    scalars, pictures = read(output)
    assert scalars == expected(output)
    names = {"train/lr", "train/images_per_s", "train/regions_per_s", "train/peak_memory", "train/loss_final"}
    names |= {"class_ap/final", "class_ap/conv", "instance_accuracy/local_1", "attention/global_1"}
    assert names <= {tag for tag, _ in scalars}
    assert {step for tag, step in scalars if tag == "train/loss"} == {1, 2, 3}
    assert {step for tag, step in scalars if tag == "class_ap/final"} == {2, 3}
    of = [(tag, event.step) for tag, event in pictures]
    assert sorted(of) == [(f"pictures/00000{i}_00000{i}", step) for i in (1, 2) for step in (2, 3)]
    last = next(event for tag, event in pictures if event.step == 3)
    drawn = Image.open(output / "vis/000001_000001.png")
    assert np.array_equal(np.asarray(Image.open(io.BytesIO(last.encoded_image_string))), np.asarray(drawn))


def test_a_run_that_goes_on_has_no_step_twice(read, train_arguments, irnet, tmp_path):
    output = tmp_path / "run"
    arguments = train_arguments(output, *EVALS, "train.vis=1", "--resume", steps=7, batch=2)
    # Behind step 4 and its evaluation; then while the results are written, behind the last evaluation.
    assert irnet.start(arguments, DIE_WRITING.format(name="last.safetensors", at=2)).wait() == -signal.SIGKILL
    assert max(step for _, step in read(output)[0]) == 4
    assert irnet.start(arguments, DIE_WRITING.format(name="results.json", at=1)).wait() == -signal.SIGKILL
    irnet.run(arguments)
    scalars, pictures = read(output)
    assert scalars == expected(output) and len(list((output / "tensorboard").iterdir())) == 3
    assert {step for tag, step in scalars if tag == "train/loss"} == set(range(1, 8))
    assert [event.step for _, event in pictures] == [2, 4, 6, 7]


def test_an_option_that_comes_later(read, trained, train_arguments, tmp_path):
    output = shutil.copytree(trained, tmp_path / "run")
    assert main(train_arguments(output, "--tensorboard", "--resume", steps=5)) == 0
    scalars, _ = read(output)
    assert scalars == {key: value for key, value in expected(output).items() if key[1] == 5}


def test_without_the_option_there_is_none(trained):
    assert not (trained / "tensorboard").exists() and not (trained / "wandb").exists()


@pytest.mark.parametrize(
    ("package", "cure"), [("tensorboard", 'pip install "irnet[tensorboard]"'), ("wandb", "pip install wandb")]
)
def test_a_package_that_is_not_installed(package, cure, train_arguments, refused, monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, package, None)
    monkeypatch.delitem(sys.modules, "torch.utils.tensorboard", raising=False)
    words = train_arguments(tmp_path / "run", f"--{package}")
    refused(words, f"--{package}: {package} is not installed; {cure}, or leave out --{package}")
    assert not (tmp_path / "run").exists()


def test_a_full_disk_is_one_line(read, train_arguments, refused_process, tmp_path):
    output = tmp_path / "run"
    first = f"{LIMIT.format(3000)}\nimport irnet.files; irnet.files.write = lambda *a: None"
    more = (*EVALS, "train.checkpoint_every=100")
    refused_process(train_arguments(output, *more), output / "tensorboard", "cannot be written", first=first)


def test_a_name_is_later_than_all_others(tmp_path, monkeypatch):
    """Or TensorBoard would read a run's second part before its first, and take it for the older one."""
    now = iter([100.2, 100.9, 101.1])
    monkeypatch.setattr(events, "time", SimpleNamespace(time=lambda: next(now), monotonic=lambda: 0, sleep=lambda _: 0))
    (tmp_path / "events.out.tfevents.0000000100.host.1.0").touch()
    events._wait_for_a_later_name(tmp_path)
    assert not list(now)


class Wandb:
    """Stands in for Weights & Biases: keeps what it is told, and fails in the function named `fails`."""

    def __init__(self, fails: str = ""):
        self.runs, self.fails = [], fails
        self.Image = lambda image: ("image", image.size)

    def init(self, **options):
        self._fail("init")
        run = SimpleNamespace(options=options, told=[], code=None)
        run.log = lambda values, step: (self._fail("log"), run.told.append((step, values)))
        run.finish = lambda exit_code: (setattr(run, "code", exit_code), self._fail("finish"))
        self.runs.append(run)
        return run

    def _fail(self, name: str) -> None:
        if name == self.fails:
            raise RuntimeError(f"the service\nhas gone in {name}")


@pytest.fixture
def wandb(monkeypatch):
    """Puts a stand-in in the place of Weights & Biases."""

    def make(fails: str = "") -> Wandb:
        stand_in = Wandb(fails)
        monkeypatch.setitem(sys.modules, "wandb", stand_in)
        return stand_in

    monkeypatch.setenv("WANDB_ERROR_REPORTING", "")  # so that it is put back
    monkeypatch.delenv("WANDB_ERROR_REPORTING")
    return make


@pytest.mark.parametrize("fails", ["init", "log", "finish"])
def test_a_trouble_of_weights_and_biases_is_one_line(fails, wandb, train_arguments, refused, tmp_path):
    """TensorBoard, made before it, is closed, and what it has put in place is gone."""
    pytest.importorskip("tensorboard", reason="tensorboard is not installed")
    stand_in, hook, output = wandb(fails), threading.excepthook, tmp_path / "run"
    refused(
        train_arguments(output, "--tensorboard", "--wandb"),
        f"{output / 'wandb'}: cannot be written (the service has gone in {fails})",
    )
    assert threading.excepthook == hook
    assert [run.code for run in stand_in.runs] == {"init": [], "log": [1], "finish": [0]}[fails]


def test_a_run_that_fails_is_no_success(wandb, train_arguments, refused, tmp_path):
    """And its own trouble is told, not that of Weights & Biases with its end."""
    stand_in = wandb("finish")
    diverges = ("train.optimizer=sgd", "train.clip_norm=0", "train.cosine=false", "train.lr=1e20")
    refused(train_arguments(tmp_path / "run", "--wandb", *diverges), "training: the loss at step 2 is nan")
    assert [run.code for run in stand_in.runs] == [1]


@pytest.mark.parametrize(("given", "found"), [(None, "false"), ("true", "true")])
def test_reports_of_crashes_are_off_before_the_package_is_there(given, found, wandb, monkeypatch):
    """Unless the user wants them: the package would send them, offline, too."""
    if given is not None:
        monkeypatch.setenv("WANDB_ERROR_REPORTING", given)
    seen, stand_in = [], wandb()
    real = builtins.__import__

    def note(name, *more):
        seen.extend([os.environ.get("WANDB_ERROR_REPORTING")] * (name == "wandb"))
        return real(name, *more)

    monkeypatch.setattr(builtins, "__import__", note)
    assert events._wandb() is stand_in and seen == [found]


def test_of_several_processes_the_first_alone_needs_the_packages(group, train_arguments, tmp_path):
    """The other follows nothing."""
    pytest.importorskip("tensorboard", reason="tensorboard is not installed")
    absent = """
import os, sys
if os.environ["RANK"] == "1":
    sys.modules["tensorboard"] = None
    sys.modules.pop("torch.utils.tensorboard", None)
"""
    group(train_arguments(tmp_path / "run", "--tensorboard", steps=1), 2, absent).end()
    assert len(list((tmp_path / "run/tensorboard").iterdir())) == 1


def test_weights_and_biases(wandb, train_arguments, tmp_path):
    stand_in = wandb()
    output = tmp_path / "run"
    assert main(train_arguments(output, "--wandb", "train.vis=1", steps=2)) == 0
    (run,) = stand_in.runs
    assert run.options.pop("config")["train"]["steps"] == 2 and run.code == 0
    assert run.options == {"mode": "offline", "dir": str(output), "name": "run"}
    figures = [(line["step"], scalars_of(line)) for line in logged(output)]
    (picture,) = [told for told in run.told if told not in figures]
    assert [told for told in run.told if told != picture] == figures and len(figures) == 3
    step, ((name, (what, size)),) = picture[0], picture[1].items()
    assert (step, name, what) == (2, "pictures/000001_000001", "image") and size[0] >= 900
