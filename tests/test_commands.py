"""Commands: each is one file, takes the options that it uses and no other, and shows the settings it would run with."""

import subprocess
import sys

import pytest

from irnet import cli, commands
from irnet import config as settings
from irnet.commands import demo
from irnet.engine import checkpoint
from irnet.options import read_settings
from tests.conftest import TINY
from tests.tools import WITH_FORMULAS

NEW = """
HELP = "say a word"


def add_arguments(parser):
    parser.add_argument("--word", default="hello", help="the word")


def run(options):
    print(options.word)
    return 3
"""


def test_the_commands():
    assert commands.names() == [
        "ablate",
        "bench",
        "data",
        "demo",
        "eval",
        "graph",
        "info",
        "page",
        "plan",
        "predict",
        "train",
    ]
    for name in commands.names():
        module = commands.load(name)
        assert module.HELP and module.__doc__.startswith(f"`irnet {name}")


def test_a_new_command_is_one_file(tmp_path, monkeypatch, capsys):
    (tmp_path / "say.py").write_text(NEW)
    monkeypatch.setattr(commands, "__path__", [*commands.__path__, str(tmp_path)])
    assert cli.main(["say"]) == 3 and cli.main(["say", "--word", "aye"]) == 3
    assert capsys.readouterr().out == "hello\naye\n"
    for words, shown in (["--help"], "say a word"), (["say", "--help"], "the word (default: hello)"):
        with pytest.raises(SystemExit):
            cli.main(words)
        assert shown in capsys.readouterr().out


@pytest.mark.parametrize(
    ("command", "option"),
    [
        ("data scenes", "--images"),
        ("data scenes", "--workers"),
        ("data scenes", "--data-root"),
        ("data scenes", "--config"),
        ("data scenes", "data.root=x"),
        ("data check", "--output-dir"),
        ("data check", "--train-scenes"),
        ("data check", "--size"),
        ("data check", "--seed"),
        ("data check", "--device"),
        ("data check", "--batch-size"),
        ("graph build", "--small"),
        ("graph build", "--workers"),
        ("graph build", "--device"),
        ("graph build", "--print-config"),
        ("graph show x", "--classes"),
        ("eval --checkpoint x", "--steps"),
        ("eval --checkpoint x", "--amp"),
        ("eval --checkpoint x", "--small"),
        ("eval --checkpoint x", "--seed"),
        ("eval --checkpoint x", "--max-regions"),
        ("predict x --boxes x --checkpoint x", "--workers"),
        ("predict x --boxes x --checkpoint x", "--config"),
        ("demo", "--data-root"),
        ("demo", "--variant"),
        ("demo", "--init-from"),
        ("demo", "--resume"),
        ("demo", "--small"),
        ("ablate", "--resume"),
        ("ablate", "--memory"),
        ("page x", "--memory"),
        ("page x", "--vis"),
        ("train --output-dir x", "--vis"),
        ("train --output-dir x", "--checkpoint"),
        ("info", "--device"),
        ("plan", "--output-dir"),
        ("plan", "--workers"),
    ],
)
def test_an_option_that_a_command_does_not_use_is_refused(command, option, capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as end:
        cli.main([*command.split(), option])
    assert end.value.code == 2 and f"unrecognized arguments: {option}\n" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_the_steps_of_a_demonstration(tmp_path):
    """250 are its default, which a file, an option and KEY=VALUE override in this order."""
    path = tmp_path / "my.yaml"
    path.write_text("train: {steps: 9}\n")
    for words, steps in ([], 250), (["--config", str(path)], 9), (["--steps", "8", "--config", str(path)], 8):
        options = cli.parser_of(["demo"]).parse_args(["demo", *words])
        assert read_settings(options, demo.small()).train.steps == steps
    help_of_demo = " ".join(cli.parser_of(["demo"])._subparsers._group_actions[0].choices["demo"].format_help().split())
    assert "resumed run included (default: 250)" in help_of_demo


# ---------------------------------------------------------------------------------------------------- --print-config


def printed(capsys, *words) -> settings.Config:
    """The settings that a command prints; they are all that it prints."""
    capsys.readouterr()
    assert cli.main([str(word) for word in [*words, "--print-config"]]) == 0
    captured = capsys.readouterr()
    assert not captured.err
    return settings.from_dict(settings.yaml.safe_load(captured.out), "what was printed")


def test_training_prints_the_settings_that_a_run_would_use(train_arguments, capsys, tmp_path):
    assert printed(capsys, "train") == settings.Config()
    assert printed(capsys, "train", "--small") == settings.small()
    path = tmp_path / "my.yaml"
    path.write_text("train: {lr: 0.25, momentum: 0.5, steps: 9, lr_steps: [3, 4]}\n")
    words = ["train", "--config", path, "--steps", "7", "train.momentum=0.75", "--data-root", tmp_path / "none"]
    words += ["--output-dir", tmp_path / "run", "--device", "cuda:99", "data.val_split=ä: #1"]
    config = printed(capsys, *words)
    assert (config.train.lr, config.train.steps, config.train.momentum) == (0.25, 7, 0.75)
    assert (config.train.lr_steps, config.data.val_split) == ([3, 4], "ä: #1")
    assert list(tmp_path.iterdir()) == [path]


def test_a_run_uses_the_printed_settings(trained, train_arguments, capsys):
    assert printed(capsys, *train_arguments(trained)) == settings.load(trained / "config.yaml")


def test_a_resumed_training_and_an_evaluation_print_the_settings_of_their_run(trained, capsys):
    files = {path: path.stat().st_mtime_ns for path in trained.rglob("*")}
    run = checkpoint.find(trained).config
    for words in (
        ["train", "--resume", trained],
        ["train", "--output-dir", trained, "--resume"],
        ["eval", "--checkpoint", trained],
    ):
        assert printed(capsys, *words) == run
        config = printed(capsys, *words, "--data-root", "elsewhere", "-j", "3")
        assert (config.data.root, config.train.workers) == ("elsewhere", 3)
    assert files == {path: path.stat().st_mtime_ns for path in trained.rglob("*")}


def test_settings_that_cannot_be_used_are_not_printed(trained, refused, capsys):
    refused(["train", "--print-config", "train.lr=-1"], "train.lr is -1.0; give at least 0")
    refused(["eval", "--checkpoint", trained, "--print-config", "model.hidden=9"], "model cannot be changed")
    for memory in ("1GiB", "nonsense"):
        with pytest.raises(SystemExit):
            cli.main(["train", "--print-config", "--memory", memory])
        assert "argument --print-config: not allowed with argument --memory\n" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        cli.main(["train", "--print-config", "--resume"])
    assert "required: --output-dir" in capsys.readouterr().err


def test_printing_the_settings_of_a_new_run_needs_no_torch(tmp_path):
    code = f"import sys; sys.modules['torch'] = None; from irnet.cli import main; sys.exit(main({['train', *TINY]}"
    done = subprocess.run([sys.executable, "-c", f"{code} + ['--print-config']))"], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "") and "  hidden: 8\n" in done.stdout


# --------------------------------------------------------------------------------------------------------------- plan

PLAN = ["plan", "--small", "--device", "cpu", "--size", "64x64", "--regions", "8", "--classes", "4"]


@WITH_FORMULAS
def test_a_plan_beside_what_was_measured(capsys):
    assert cli.main([*PLAN, "--variant", "full", "-b", "4", "--grad-accum-steps", "2", "--measure"]) == 0
    title, _, head, *rows, _, words = capsys.readouterr().out.splitlines()
    assert title == "full on small, 4 classes, 4 images of 64 x 64 pixels with 8 regions a step, on a CPU"
    assert head.split() == ["peak", "of", "a", "step,", "2", "images", "at", "a", "time,", "float32", "MiB"]
    sizes = {row[: row.rindex(" ")].strip(): float(row.split()[-1].rstrip("%")) for row in rows}
    total = next(size for name, size in sizes.items() if name.startswith("total, within "))
    assert total == pytest.approx(sum(list(sizes.values())[:6]), abs=0.04)
    assert total == pytest.approx(sizes["measured"], rel=0.05) and abs(sizes["the plan is off by"]) < 5
    assert words == "train.batch_size=4 train.grad_accum_steps=2 train.amp=off train.grad_checkpointing=false"


def test_a_plan_with_a_budget_of_pixels(capsys):
    outputs = []
    for words in (["-b", "2"], ["-b", "8", "train.max_batch_pixels=12000"]):  # 64 x 64 pixels are 4,096
        assert cli.main([*PLAN, "--variant", "conv", *words]) == 0
        outputs.append(capsys.readouterr().out.splitlines())
    two, budget = outputs
    assert budget[2].startswith("peak of a step, at most 8 images at a time, float32")
    assert "at most 8 images of 64 x 64 pixels" in budget[0] and "2 images of 64 x 64 pixels" in two[0]
    assert [line.split() for line in two[3:10]] == [line.split() for line in budget[3:10]]


def test_a_plan_for_a_memory(capsys):
    assert cli.main([*PLAN, "--variant", "conv", "-b", "4", "--memory", "1GiB"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[2].split() == ["precision", "checkpointing", "micro-batch", "parts", "peak,", "MiB"]
    assert [line.split()[:4] for line in lines[3:7]] == [
        [precision, checkpointing, "4", "1"] for precision in ("float32", "bfloat16") for checkpointing in ("off", "on")
    ]
    read = cli.parser_of(["train"]).parse_args(["train", *lines[-1].split()])
    assert read_settings(read).train.batch_size == 4
    assert cli.main([*PLAN, "--variant", "conv", "-b", "1", "--memory", "1KiB"]) == 2
    error = capsys.readouterr().err
    trouble = "no step on images of 64 x 64 pixels and 8 regions fits into 1.00 KiB"
    assert error.startswith(f"irnet: --memory: {trouble}; the least is train.batch_size=1 ")


@pytest.mark.parametrize("size", ["600", "600x", "x", "0x5", "axb", "99999x99999"])
def test_a_size_that_is_none(size, capsys):
    assert cli.main(["plan", "--size", size]) == 2
    assert capsys.readouterr().err == (
        f"irnet: --size: {size!r} is no size of an image; write HxW in pixels, such as 600x1000\n"
    )


@pytest.mark.parametrize(
    ("words", "key"),
    [
        (["--data", "coco"], "data.name"),
        (["--small", "--data", "scenes"], "data.name"),
        (["--max-regions", "8"], "data.max_regions"),
        (["data.short_side=300", "--small"], "data.short_side"),
        (["--data-root", "", "data.flip=false"], "data.flip"),
    ],
)
def test_settings_of_data_need_data(words, key, refused):
    refused(["plan", "--size", "64x64", *words], f"--data-root: is not given, and {key} is for data alone; ")


def test_a_file_of_settings_with_data_needs_data(tmp_path, refused):
    path = tmp_path / "my.yaml"
    path.write_text("data: {max_regions: 9}\n")
    refused(["plan", "--config", path], "--data-root: is not given, and data.max_regions is for data alone; ")


def test_a_plan_with_a_shipped_file_needs_no_data(tmp_path, monkeypatch, capsys, refused):
    words = [
        "plan",
        "--config",
        "ade20k",
        "--variant",
        "local",
        "--size",
        "600x1000",
        "--regions",
        "8",
        "--device",
        "cpu",
    ]
    assert cli.main(words) == 0
    first = capsys.readouterr().out.splitlines()[0]
    assert first.startswith("local on resnet101, 80 classes, 1 image of 600 x 1000 pixels with 8 regions a step")
    assert cli.main(["plan", "--config", "ade20k-lg", "--variant", "conv", "--device", "cpu", "--regions", "8"]) == 0
    assert "1 image of 800 x 1200 pixels" in capsys.readouterr().out.splitlines()[0]
    refused([*words, "--data", "vg"], "--data-root: is not given, and data.name is for data alone; ")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "ade20k").write_text("data: {name: ade20k}\n")  # the user's own file of that name
    refused(words, "--data-root: is not given, and data.name is for data alone; ")


def test_a_plan_for_data(scenes_root, capsys):
    words = ["plan", "--small", "--device", "cpu", "--variant", "conv", "-b", "1", "--data-root", str(scenes_root)]
    assert cli.main([*words, "--max-regions", "2"]) == 0
    assert "1 image of 160 x 160 pixels with at most 2 regions a step" in capsys.readouterr().out
