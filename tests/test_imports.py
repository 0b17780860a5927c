"""Imports run one way, from the harness to the model to the operators; and importing the model is light."""

import subprocess
import sys
from pathlib import Path

import pytest

from tests.tools import imported

ROOT = Path(__file__).resolve().parents[1]
SOURCES = sorted((ROOT / "irnet").rglob("*.py"))
CALLS_THE_HARNESS = ROOT / "irnet/commands/bench.py"


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_only_the_command_bench_imports_the_harness(path):
    assert path == CALLS_THE_HARNESS or not [n for n in imported(path, ROOT) if n.split(".")[0] == "irnet_bench"]


def test_the_static_check_sees_every_kind_of_import(tmp_path):
    (tmp_path / "kernels/a/b").mkdir(parents=True)
    file = tmp_path / "kernels/a/b/c.py"
    file.write_text("import irnet.x\ndef f():\n  from irnet import y\n  from ..z import w\nimport_module('irnet.v')\n")
    assert imported(file, tmp_path) == {"irnet.x", "irnet", "a.z", "irnet.v"}


def test_importing_the_model_is_light():
    code = """
import sys, torch
before = set(sys.modules)
import irnet.models.irnet
assert not [m for m in set(sys.modules) - before if m.split(".")[0] in ("triton", "irnet_bench")]
assert not torch.cuda.is_initialized()
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


HEAVY = ("torch", "matplotlib", "pandas", "scipy", "jinja2", "tabulate", "pycocotools", "triton", "irnet_bench")


@pytest.mark.parametrize("work", ["", "from irnet.cli import main; main(['--help'])"], ids=["import", "help"])
def test_neither_the_package_nor_its_help_imports_anything_heavy(work):
    code = f"""
import atexit, sys, irnet
atexit.register(lambda: print("heavy:", *(name for name in {HEAVY} if name in sys.modules)))
{work}
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "heavy:" and ("predict" in done.stdout) == bool(work)
