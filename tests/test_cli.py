"""The command line: every command runs, and bad input is one line that names the file, the trouble and the cure."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from irnet import __version__
from irnet import config as settings
from irnet.class_graphs.format import load_class_graph
from irnet.cli import main
from irnet.data.registry import open_dataset
from irnet.engine import checkpoint
from irnet.engine.build import restore_model
from irnet.engine.check import check as check_data
from irnet.errors import InputError
from tests.conftest import ROOT


def run(*arguments) -> None:
    assert main([str(a) for a in arguments]) == 0


@pytest.fixture
def copied(scenes_root, tmp_path):
    """A copy of the scenes to damage."""
    return shutil.copytree(scenes_root, tmp_path / "scenes")


def change(root, split: str, key: str, edit) -> None:
    """Edit one of the lists of a split's annotation file."""
    path = root / f"annotations/instances_{split}.json"
    table = json.loads(path.read_text())
    edit(table[key])
    path.write_text(json.dumps(table))


# ------------------------------------------------------------------------------------------------------- commands


def test_version(capsys):
    with pytest.raises(SystemExit) as end:
        main(["--version"])
    assert end.value.code == 0 and capsys.readouterr().out == f"irnet {__version__}\n"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "COMMAND"),
        (["fly"], "invalid choice: 'fly'"),
        (["train"], "--output-dir"),
        (["train", "--output-dir", "x", "--colour", "red"], "unrecognized arguments: --colour"),
        (["info", "train.lr=1"], "unrecognized arguments: train.lr=1"),
        (["train", "--output-dir", "x", "train.lr=1", "--steps", "2", "stray"], "unrecognized arguments: stray"),
        (["train", "--output-dir", "x", "--amp", "half"], "--amp"),
    ],
)
def test_usage_errors(arguments, words, capsys):
    with pytest.raises(SystemExit) as end:
        main(arguments)
    assert end.value.code == 2
    err = capsys.readouterr().err
    assert err.startswith("usage: irnet") and words in err


@pytest.mark.parametrize("command", ["demo", "ablate"])
def test_one_of_several_processes_is_refused_where_they_do_not_work_together(command, refused, tmp_path, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    refused([command, "--output-dir", tmp_path / "out"], "torchrun", f"irnet {command} is one process")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("command", ["demo", "train", "eval", "predict", "page", "data", "graph", "info"])
def test_help(command, capsys):
    with pytest.raises(SystemExit) as end:
        main([command, "--help"])
    assert end.value.code == 0 and f"irnet {command}" in capsys.readouterr().out


def test_info(capsys):
    run("info")
    out = capsys.readouterr().out
    assert f"irnet {__version__}" in out and torch.__version__ in out and "crop_resize" in out


def test_data_check(copied, capsys):
    change(copied, "train", "annotations", lambda rows: rows[0].update(iscrowd=1))
    run("data", "check", "--data", "scenes", "--data-root", copied)
    out = capsys.readouterr().out
    assert re.search(r"^train: 8 images, 69 regions, 19 classes\n  iscrowd: 1\nval: 4 images, 22 regions", out, re.M)


@pytest.mark.parametrize("command", [["data", "check"], ["graph", "build"]])
def test_check_and_graph_take_settings_as_train_does(command, copied, refused, tmp_path, capsys):
    for split in ("train", "val"):
        (copied / f"annotations/instances_{split}.json").rename(copied / f"annotations/instances_my{split}.json")
        (copied / "images" / split).rename(copied / "images" / f"my{split}")
    named = ["data.train_split=mytrain", "data.val_split=myval"]
    words = [*command, "--data-root", copied]
    refused(words, "name the one to train on by data.train_split: mytrain, myval")
    refused(
        [*words, "data.train_split=x", "data.val_split=y"], "by data.train_split and data.val_split: mytrain, myval"
    )
    run(*words, *named)
    run(*words, named[0], "--max-regions", "1", named[1])
    assert ("8 images, 8 regions" in capsys.readouterr().out) == (command[0] == "data")
    (tmp_path / "my.yaml").write_text("data: {train_split: mytrain, val_split: myval}")
    run(*words, "--config", tmp_path / "my.yaml")
    refused([*words, "--config", tmp_path / "no.yaml"], "no.yaml", "No such file")
    refused([*words, "data.colour=red"], "unknown config key 'data.colour'")
    refused([*words, "--max-regions", "-1"], "data.max_regions is -1")


def test_data_check_in_processes(copied, refused, monkeypatch, capsys):
    monkeypatch.setattr("irnet.engine.check.CHUNK", 2)
    words = ["data", "check", "--data-root", copied, "-j", "2", "--images"]
    run(*words)
    for number in (2, 5, 7):
        path = next(copied.rglob(f"*train/{number:06d}.png"))
        path.write_bytes(path.read_bytes()[:900] + path.read_bytes()[920:])
    (copied / "class_graph.json").unlink()
    change(copied, "val", "categories", rename)
    capsys.readouterr()
    assert main([str(word) for word in words]) == 2
    captured = capsys.readouterr()
    found = [line.split(": ")[0].strip() for line in captured.out.splitlines() if line.startswith(f"  {copied}")]
    assert [os.path.basename(name) for name in found] == [
        "000002.png", "000005.png", "000007.png", "instances_val.json"
    ]  # fmt: skip
    assert "the first of 4 findings" in captured.err


def test_data_check_in_processes_after_threads_in_this_one(scenes_root, irnet):
    """A forked process has none of the threads that OpenMP started before, and would wait for them for ever."""
    first = "import signal, torch, irnet.engine.check as check; signal.alarm(60); torch.set_num_threads(2); "
    splits = ["data.train_split=val", "data.val_split=train"]  # the smaller one is looked at in this process
    words = ["data", "check", "--data-root", scenes_root, *splits, "-j", "2", "--images"]
    irnet.run(words, first + "check.CHUNK = 4")


def test_equal_findings_are_told_once_without_comparing_each_to_all(scenes_root, monkeypatch):
    shown = 0

    class Counted(InputError):
        def __str__(self):
            nonlocal shown
            shown += 1
            return super().__str__()

    errors = [Counted(f"{i % 500}.png", "is damaged", "fetch it") for i in range(1000)]
    monkeypatch.setattr("irnet.engine.check._examine_images", lambda *arguments: (errors, 0))
    config = settings.small()
    config.data = settings.DataConfig(name="scenes", root=str(scenes_root))
    found = check_data(config, False, lambda line: None)
    assert [error.where for error in found] == [f"{i}.png" for i in range(500)] and shown <= 4000


def test_data_scenes(tmp_path, capsys):
    run("data", "scenes", "--output-dir", tmp_path / "s", "--train-scenes", "2", "--val-scenes", "2", "--size", "160")
    assert "train: 2 images; seeing only a box's own view" in capsys.readouterr().out
    run("data", "check", "--data", "scenes", "--data-root", tmp_path / "s")
    run("data", "scenes", "--output-dir", tmp_path / "apart", "--train-scenes", "2", "--val-scenes", "2", "--apart")
    facts = json.loads((tmp_path / "apart" / "scenes.json").read_text())
    assert facts["apart"] is True and facts["size"] == 256


def test_graph(scenes_root, tmp_path, capsys):
    path = tmp_path / "graph.json"
    run("graph", "build", "--data", "scenes", "--data-root", scenes_root, "--show", "2", "--output", path)
    out = capsys.readouterr().out
    classes = open_dataset(settings.DataConfig(name="scenes", root=str(scenes_root)), "train").classes
    graph = load_class_graph(path, classes)
    for name, (src, _, weight) in graph.relations.items():
        shown = out.split(f"{name}: {len(src)} edges\n")[1].splitlines()[: min(2, len(src))]
        assert all(re.fullmatch(r"  \w+ -> \w+  \d\.\d{3}", line) for line in shown)
        assert float(shown[0].split()[-1]) == pytest.approx(weight.max().item(), abs=5e-4)


@pytest.mark.parametrize("group", ["none", "", None, "N/A", "thing"])  # the last one is shared by all classes
def test_graph_counts_no_edges_before_it_refuses(group, copied, tmp_path, capsys):
    (copied / "class_graph.json").unlink()
    change(copied, "train", "categories", lambda rows: [row.update(supercategory=group) for row in rows])
    words = ["graph", "build", "--data", "scenes", "--data-root", copied]
    run(*words)
    assert re.search(r"^same_supercategory: 0 edges\nco_occurs: [1-9]\d* edges\n  ", capsys.readouterr().out, re.M)
    change(copied, "train", "annotations", lambda rows: rows.__delitem__(slice(1, None)))
    path = tmp_path / "graph.json"
    assert main([str(word) for word in [*words, "--output", path]]) == 2
    captured = capsys.readouterr()
    assert captured.out == "same_supercategory: 0 edges\nco_occurs: 0 edges\n" and not path.exists()
    assert captured.err.splitlines()[-1].startswith("irnet: class graph: no two classes share a supercategory")


def test_settings_come_from_file_then_options_then_overrides(train_arguments, tmp_path):
    path = tmp_path / "my.yaml"
    path.write_text("train: {lr: 5e-3, momentum: 0.5, steps: 9}\nloss: {beta: 0.25}\n")
    words = train_arguments(tmp_path / "run", "--config", str(path), steps=1)
    run(*words[:6], "loss.beta=0.75", *words[6:], "train.momentum=0.25", "--limit-batches", "1")
    config = settings.load(tmp_path / "run/config.yaml")
    assert (config.train.lr, config.train.momentum, config.loss.beta) == (5e-3, 0.25, 0.75)
    assert (config.train.steps, config.train.batch_size, config.train.limit_batches) == (1, 4, 1)
    assert config == checkpoint.find(tmp_path / "run").config


def test_resume_directly_before_a_setting(train_arguments, tmp_path):
    words = train_arguments(tmp_path / "run", steps=1)
    run(*words)
    run(*words, "--resume", "train.steps=2")
    assert checkpoint.find(tmp_path / "run").step == 2


def test_resume_from_a_mistyped_path_is_not_a_setting(train_arguments, refused, tmp_path):
    path = tmp_path / "runs/lr=3" / "last.safetensors"
    refused([*train_arguments(tmp_path / "run"), "--resume", path], f"{path}: holds no checkpoint")


@pytest.mark.parametrize(
    ("given", "policy", "spins"),
    [
        ({}, "passive", "10000"),
        ({"OMP_WAIT_POLICY": "active"}, "active", None),
        ({"OMP_WAIT_POLICY": "passive"}, "passive", None),
        ({"GOMP_SPINCOUNT": "1000"}, None, "1000"),
        ({"KMP_BLOCKTIME": "200"}, None, None),
    ],
    ids=str,
)
def test_threads_soon_sleep_unless_the_user_says_otherwise(given, policy, spins):
    """Set before torch, which reads it, is loaded; the worker pool would spin on a busy machine."""
    code = """
import os, sys, irnet.cli as cli, irnet.commands.info as info
found = lambda: (os.environ.get("OMP_WAIT_POLICY"), os.environ.get("GOMP_SPINCOUNT"))
before = found()
info.run = lambda options: print("torch" in sys.modules, *before, *found())
cli.main(["info"])
"""
    env = {name: value for name, value in os.environ.items() if not name.startswith(("OMP_WAIT", "GOMP_", "KMP_"))}
    root = Path(settings.__file__).parents[1]
    env |= {"PYTHONPATH": f"{root}:{root / 'kernels'}:{root / 'benchmarks'}"} | given
    found = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, check=True)
    before = [given.get("OMP_WAIT_POLICY"), given.get("GOMP_SPINCOUNT")]
    assert found.stdout.split() == ["False", *map(str, [*before, policy, spins])]


# ------------------------------------------------------------------------------------------------------ bad input


def test_no_data_folder(train_arguments, refused, refused_process, tmp_path):
    for check in (refused, refused_process):
        check(train_arguments(tmp_path / "run", data=tmp_path / "nowhere"), tmp_path / "nowhere", "no such folder")
    refused(["data", "check"], "--data-root", "is not given")
    refused(["graph", "build", "--data-root", tmp_path], tmp_path, "no such annotation file")


def test_missing_image_file(copied, train_arguments, refused, tmp_path):
    image = next(copied.rglob("*train/000003.png"))
    image.unlink()
    refused(train_arguments(tmp_path / "run", data=copied), image, "no such image file (1 of the 8")


@pytest.mark.parametrize("key", ["image_id", "category_id"])
def test_annotation_of_nothing(key, copied, train_arguments, refused, tmp_path):
    change(copied, "train", "annotations", lambda rows: rows[4].update({key: 999}))
    what = key.removesuffix("_id")
    words = ("instances_train.json", f"annotation 5 refers to {what} 999, which is not in the file")
    refused(train_arguments(tmp_path / "run", data=copied), *words)


def test_annotation_file_cut_short(copied, train_arguments, refused, tmp_path):
    path = copied / "annotations/instances_val.json"
    path.write_text(path.read_text()[:-50])
    refused(train_arguments(tmp_path / "run", data=copied), path, "not valid JSON")


def rename(rows):
    rows[3]["name"] = "unicorn"


def swap(rows):
    rows[3]["name"], rows[4]["name"] = rows[4]["name"], rows[3]["name"]


def more(rows):
    rows.append(rows[0] | {"id": 99, "name": "unicorn"})


@pytest.mark.parametrize(
    ("edit", "words"), [(rename, "new: 'unicorn'"), (swap, "in another order"), (more, "the data's 20 classes")]
)
def test_other_classes(edit, words, copied, trained, train_arguments, refused, tmp_path):
    (copied / "class_graph.json").unlink()
    change(copied, "val", "categories", edit)
    refused(train_arguments(tmp_path / "new", data=copied), "instances_val.json", words)
    out = ["--output-dir", tmp_path / "out"]
    refused(["eval", "--checkpoint", trained, "--data-root", copied, *out], "instances_val.json", words)
    change(copied, "train", "categories", edit)
    run_folder = shutil.copytree(trained, tmp_path / "run")
    refused(train_arguments(run_folder, "--resume", data=copied, steps=6), checkpoint.LAST, words)
    assert checkpoint.find(run_folder).step == 4


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("train: {learning_rat: 1}", "did you mean train."),
        ("train: {steps: many}", "wants a value of type int"),
        ("train: [", "is not valid YAML"),
        ("\x00\x01", "is not valid YAML"),
        ("- 1\n- 2", "does not hold sections"),
        ("train: {lr: .nan}", "train.lr is nan"),
    ],
)
def test_bad_config_file(text, words, refused, tmp_path):
    path = tmp_path / "my.yaml"
    path.write_text(text)
    message = refused(["train", "--output-dir", tmp_path / "run", "--config", path], words)
    assert str(path) in message or "lr is nan" in message
    refused(["train", "--output-dir", tmp_path / "run", "--config", tmp_path / "no.yaml"], "no.yaml", "No such file")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("pair", "words"),
    [
        ("train.lrr=1", "unknown config key 'train.lrr'; did you mean train.lr?"),
        ("trian.lr=1", "unknown config key 'trian.lr'; did you mean train.lr?"),
        ("steps=1", "unknown config key 'steps'; did you mean train.steps?"),
        ("train.steps=1.5", "wants a value of type int"),
        ("model.variant=fast", "choose one of conv, local, global, full"),
        ("train.batch_size=0", "give at least 1"),
    ],
)
def test_bad_override(pair, words, refused, tmp_path):
    refused(["train", "--output-dir", tmp_path / "run", pair], "command line", words)


def test_word_that_is_no_setting(refused, tmp_path):
    refused(["train", "--output-dir", tmp_path / "run", "fast"], "'fast' is no KEY=VALUE")


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has CUDA, so asking for it is no mistake")
@pytest.mark.parametrize("device", ["cuda", "cuda:7"])
def test_cuda_that_is_not_there(device, trained, refused, tmp_path):
    refused(["train", "--output-dir", tmp_path / "run", "--device", device], "--device", f"'{device}'", "use cpu")
    refused(["eval", "--checkpoint", trained, "--device", device], "--device", "use cpu")


@pytest.mark.parametrize("device", ["meta", "gpu", "cpu:x", "mps", "xla"])
def test_other_devices(device, refused, tmp_path):
    refused(["train", "--output-dir", tmp_path / "run", "--device", device], "--device", f"'{device}'", "use cpu")


def test_output_folder_that_is_a_file(trained, train_arguments, refused, tmp_path):
    (tmp_path / "file").write_text("precious")
    for output in (tmp_path / "file", tmp_path / "file/run"):
        refused(train_arguments(output), output, "cannot be written")
        refused(train_arguments(output, "--resume"), output, "cannot be written")
        refused(["eval", "--checkpoint", trained, "--output-dir", output, "-j", "0"], output, "cannot be written")
    graph = ["graph", "build", "--data", "scenes", "--data-root", checkpoint.find(trained).config.data.root]
    refused([*graph, "--output", tmp_path / "file/graph.json"], "graph.json", "cannot be written")
    assert (tmp_path / "file").read_text() == "precious"


def test_output_folder_that_may_not_be_written(train_arguments, refused_process, tmp_path):
    locked = tmp_path / "locked"
    locked.mkdir(mode=0o555)
    nobody = "import os\nif os.getuid() == 0:\n    os.setuid(65534)"  # root may write anywhere
    for more in ([], ["--resume"]):
        arguments = train_arguments(locked / "run", *more)
        refused_process(arguments, locked, "cannot be written (Permission denied)", first=nobody)


def test_checkpoint_that_is_not_there(train_arguments, refused, tmp_path):
    (tmp_path / "run/checkpoints").mkdir(parents=True)
    for place in (tmp_path / "run", tmp_path / "nowhere"):
        refused(["eval", "--checkpoint", place], place, "holds no checkpoint", "irnet train")
        refused(train_arguments(tmp_path / "new", "--resume", str(place)), place, "holds no checkpoint")


def test_run_stopped_before_its_first_checkpoint_starts_anew(train_arguments, tmp_path):
    (tmp_path / "run/checkpoints").mkdir(parents=True)
    (tmp_path / "run/checkpoints/.last.safetensors.tmp").write_bytes(b"half")
    run(*train_arguments(tmp_path / "run", "--resume", steps=1))
    assert checkpoint.find(tmp_path / "run").step == 1


@pytest.mark.parametrize(
    ("tensors", "words"),
    [
        ({"vectors": torch.ones(18, 3)}, "is [18, 3], not finite [19, V]"),
        ({"vectors": torch.ones(19)}, "is [19], not finite [19, V]"),
        ({"vectors": torch.full((19, 3), torch.nan)}, "not finite"),
        ({"words": torch.ones(19, 3)}, "has no readable tensor `vectors`"),
    ],
)
def test_bad_word_vectors(tensors, words, train_arguments, refused, tmp_path):
    path = tmp_path / "words.safetensors"
    save_file(tensors, path)
    refused(train_arguments(tmp_path / "run", f"data.word_vectors={path}"), path, words)


def test_word_vectors_are_used_and_come_back(train_arguments, tmp_path):
    vectors = torch.arange(57.0).reshape(19, 3) / 57
    save_file({"vectors": vectors}, tmp_path / "words.safetensors")
    words = [f"data.word_vectors={tmp_path / 'words.safetensors'}", "--variant", "global"]
    run(*train_arguments(tmp_path / "run", *words, steps=1))
    (tmp_path / "words.safetensors").unlink()  # a checkpoint holds all it needs
    saved = checkpoint.find(tmp_path / "run")
    model = restore_model(saved.config.model, len(saved.classes), saved.model)
    assert torch.equal(model.graph.word_vectors, vectors)
    run("eval", "--checkpoint", tmp_path / "run", "-j", "0")
    older = saved.model | {"graph.graph_t_indptr": torch.zeros(len(saved.classes) + 1).long()}
    with pytest.raises(InputError, match="holds its class graph as older versions of irnet did"):
        restore_model(saved.config.model, len(saved.classes), older)


def test_word_vectors_of_words(scenes_root, train_arguments, refused, tmp_path, caplog):
    classes = open_dataset(settings.DataConfig(name="scenes", root=str(scenes_root)), "train").classes
    words = sorted({word for name in classes for word in re.findall(r"[a-z]+", name)} - {"cup"})
    rows = {word: [i / 7, 1 - i] for i, word in enumerate(["left", "right", *words])}
    path = tmp_path / "glove.txt"
    path.write_text("".join(f"{word} {row[0]!r} {row[1]!r}\n" for word, row in rows.items()))
    run(*train_arguments(tmp_path / "run", "--word-vectors", path, "--variant", "global", steps=1))
    vectors = checkpoint.find(tmp_path / "run").model["graph.word_vectors"]
    for name, vector in zip(classes, vectors, strict=True):
        expected = np.mean([rows.get(word, [0, 0]) for word in re.findall(r"[a-z]+", name)], axis=0)
        assert vector.tolist() == pytest.approx(expected.tolist())
    assert ("1 words of 1 names have no vector: cup" in caplog.text) == ("cup" in classes)
    path.write_text(path.read_text() + "cup 1\n")
    trouble = f"line {len(rows) + 1} has 1 numbers, not 2"
    refused(train_arguments(tmp_path / "other", "--word-vectors", path, "--variant", "global", steps=1), path, trouble)


def test_word_vectors_that_are_no_file(train_arguments, refused, tmp_path):
    path = tmp_path / "no.safetensors"
    refused(train_arguments(tmp_path / "run", f"data.word_vectors={path}"), path, "has no readable tensor")


def test_class_graph_of_other_classes(scenes_root, train_arguments, refused, tmp_path):
    graph = json.loads((scenes_root / "class_graph.json").read_text())
    graph["classes"][2] = "unicorn"
    path = tmp_path / "graph.json"
    path.write_text(json.dumps(graph))
    more = [f"data.class_graph={path}"]
    refused(train_arguments(tmp_path / "run", *more), path, "its classes are not the data's", "unicorn")
    run(*train_arguments(tmp_path / "conv", *more, "--variant", "conv", steps=1))  # which needs no graph


def test_image_of_another_size(copied, train_arguments, refused, tmp_path):
    path = next(copied.rglob("*train/000001.png"))
    Image.new("RGB", (50, 40)).save(path)
    refused(train_arguments(tmp_path / "run", data=copied), path, "is 50 x 40, but", "160 x 160")


def test_message_with_a_line_break_stays_one_line(refused, tmp_path):
    refused(["eval", "--checkpoint", f"{tmp_path}/a\nb"], "holds no checkpoint")


@pytest.mark.parametrize(
    ("module", "package", "command"),
    [
        ("torch", "torch", ["info"]),
        ("torch", "torch", ["demo"]),
        ("torch", "torch", ["train", "--output-dir", "x"]),
        ("torch", "torch", ["bench", "kernels"]),
        ("yaml", "PyYAML", ["train", "--output-dir", "x"]),
        ("yaml", "PyYAML", ["eval", "--checkpoint", "x"]),
        ("numpy", "numpy", ["graph", "build", "--data-root", "x"]),
        ("PIL", "Pillow", ["data", "check", "--data-root", "x"]),
        ("safetensors", "safetensors", ["predict", "x.png", "--boxes", "x.json", "--checkpoint", "x"]),
        ("tqdm", "tqdm", ["data", "scenes", "--output-dir", "x"]),
    ],
    ids=lambda value: value if isinstance(value, str) else value[0],
)
def test_without_a_package_a_command_says_so_in_one_line(module, package, command, tmp_path):
    code = f"import sys; sys.modules[{module!r}] = None; from irnet.cli import main; sys.exit(main({command}))"
    env = os.environ | {"PYTHONPATH": f"{ROOT}:{ROOT / 'kernels'}:{ROOT / 'benchmarks'}"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path, env=env)
    message = f"irnet: {package}: is not installed; pip install {package}\n"
    assert (done.returncode, done.stderr) == (2, message)
