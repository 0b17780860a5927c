"""The README's Python runs as it stands, and its plain-PyTorch crop is the operator's."""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from irnet.cli import THREADS_SLEEP
from irnet.config import Config, TrainConfig, override
from irnet.engine.optim import learning_rate
from irnet_kernels import crop_resize

README = Path(__file__).parents[1] / "README.md"


def test_python_blocks_run_and_say_the_shapes():
    operators, plain, model = re.findall(r"```python\n(.*?)```", README.read_text(), re.DOTALL)
    names = {}
    exec(operators, names)
    assert names["patches"].shape == (3, 512, 7, 7)
    assert names["memory"].shape == (2, 512, 38, 63)
    assert names["messages"].shape == (3, 512)
    exec(plain, names)
    ours = crop_resize(names["memory"], names["boxes"], names["ptr"])[0]
    # Both interpolate with weights that carry a few roundings of positions up to 62.
    budget = 8 * 62 * torch.finfo(torch.float32).eps * names["memory"].abs().max()
    assert (names["patch"][0] - ours).abs().max() < budget
    exec(model, names)
    assert names["predictions"].final.shape == (3, 80)
    assert names["predictions"].attention.shape == (4, 3)


def test_make_targets_named_exist():
    makefile = (README.parent / "Makefile").read_text()
    for target in set(re.findall(r"(?:^    |`)make ([a-z-]+)", README.read_text(), re.MULTILINE)):
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), target


def test_the_schedule_for_eight_images_a_step_is_the_authors():
    """Of the rate for one image it is eight times that of the step at which as many images have been seen."""
    (line,) = re.findall(r"^    (irnet train .*-b 8 .*)", README.read_text(), re.MULTILINE)
    words, config = shlex.split(line), Config()
    override(config, "train.steps", words[words.index("--steps") + 1])
    for word in words:
        if word.startswith("train."):
            override(config, *word.split("=", 1))
    one = TrainConfig()
    assert config.train.steps * 8 == one.steps
    for step in (1, 25_000, 25_001, 35_000, 35_001, 40_000):
        assert learning_rate(config.train, step) == pytest.approx(8 * learning_rate(one, 8 * step))


def test_the_file_that_shows_the_form_of_a_recording_is_made_and_compared(tmp_path):
    """Both commands run as they stand, in a folder of their own."""
    first, second = re.findall(
        r"^    python (-c .*test_parity.*|-m irnet.parity parity.npz)$", README.read_text(), re.M
    )
    root = README.parent
    environment = os.environ | {"PYTHONPATH": f"{root}:{root / 'kernels'}:{root / 'benchmarks'}"}
    for words in (first, second):
        command = [sys.executable, *shlex.split(words)]
        done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stderr
    assert done.stdout.endswith("passed\n") and (tmp_path / "parity.npz").stat().st_size < 100_000


NO_VARIABLES = {"IRNET_WITH_CUDA"}  # a macro of the C++ sources
OF_EVERY_PROGRAM = {"PATH", "PYTHONPATH"}


def variables(folders: list[str], pattern: str) -> set[str]:
    """The names that a pattern finds in the Python sources of folders."""
    root = README.parent
    paths = [path for folder in folders for path in [root / folder, *(root / folder).rglob("*.py")] if path.is_file()]
    assert len(paths) >= len(folders)
    return {name for path in paths for name in re.findall(pattern, path.read_text())} - NO_VARIABLES


def test_every_environment_variable_stands_in_the_table():
    section = README.read_text().split("**Environment variables.**")[1].split("\n\n")[1]
    table = {name for row in section.splitlines() for name in re.findall(r"`([A-Z_]+)`", row.split("|")[1])}
    own = variables(["irnet", "kernels", "benchmarks", "tests", "setup.py"], r"""["'](IRNET_[A-Z_]+)["']""")
    own |= set(re.findall(r"\b(IRNET_[A-Z_]+)=", (README.parent / "Makefile").read_text()))
    assert {"IRNET_IMPL", "IRNET_TUNED", "IRNET_NO_EXT", "IRNET_FUZZ_SEED", "IRNET_SANITIZE"} <= own
    assert own == {name for name in table if name.startswith("IRNET_")}
    read = r"""\benv(?:iron)?(?:\.get|\.setdefault|\.pop)?[\[(]\s*["']([A-Z_0-9]+)["']"""
    foreign = variables(["irnet", "kernels", "benchmarks", "setup.py"], read)
    assert {"CXX", "TRITON_INTERPRET"} <= foreign
    foreign |= THREADS_SLEEP.keys()
    assert foreign - OF_EVERY_PROGRAM <= table
