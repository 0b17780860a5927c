"""Triton's own way to machine code with a driver that launches nothing: what it compiles, caches, notes and refuses."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton", reason="Triton is not installed")
ROOT = Path(__file__).resolve().parents[3]
LAUNCHED = """
import torch, irnet_kernels
from irnet_kernels.aot import driver

def crop(dtype, height=8, **options):
    features = torch.ones(2, 32, height, 9, dtype=dtype).contiguous(memory_format=torch.channels_last)
    boxes, ptr = torch.tensor([[0.0, 0, 4, 4]] * 3), torch.tensor([0, 2, 3])
    return irnet_kernels.crop_resize(features, boxes, ptr, 3, **options)
"""


def python(code: str, tmp_path: Path, *words: str, **variables: str) -> subprocess.CompletedProcess:
    env = os.environ | {"PYTHONPATH": f"{ROOT}:{ROOT / 'kernels'}", "TRITON_CACHE_DIR": str(tmp_path / "cache")}
    env.pop("TRITON_INTERPRET", None)
    command = [sys.executable, *words, *(["-c", LAUNCHED + code] if code else [])]
    return subprocess.run(command, env=env | variables, capture_output=True, text=True)


def cached(tmp_path: Path) -> set[str]:
    return {str(path) for path in (tmp_path / "cache").rglob("*")}


def test_a_launch_is_compiled_cached_and_noted(tmp_path):
    code = "launches = driver.install(); crop(torch.bfloat16, impl='triton'); print(list(launches))"
    done = python(code, tmp_path)
    assert "crop_resize_forward_kernel" in done.stdout and "grid=(" in done.stdout, done.stderr
    kinds = {Path(path).suffix for path in cached(tmp_path)}
    assert {".cubin", ".json"} <= kinds


def test_what_is_linked_finds_a_real_driver_where_there_is_one(tmp_path):
    """Libraries for the CPU name libcuda.so.1 as needed, else they would not load beside a real one."""
    assert python("driver.install(); crop(torch.bfloat16, impl='triton')", tmp_path).returncode == 0
    libraries = [path for path in map(Path, cached(tmp_path)) if path.suffix == ".so"]
    assert libraries and all(b"libcuda.so.1\0" in path.read_bytes() for path in libraries)


def test_another_process_compiles_nothing_again(tmp_path):
    code = "driver.install(); crop(torch.bfloat16, impl='triton')"
    assert python(code, tmp_path).returncode == 0
    before = cached(tmp_path)
    # Only what a machine with a GPU is given.
    for path in map(Path, before):
        if path.is_file() and path.suffix not in (".cubin", ".json", ".so"):
            path.unlink()
    kept = cached(tmp_path)
    done = python(code, tmp_path)
    assert done.returncode == 0 and cached(tmp_path) == kept, "what is cached is enough"
    assert python(code.replace("bfloat16", "float16"), tmp_path).returncode == 0
    assert cached(tmp_path) > kept, "another dtype is another kernel"


def test_a_grid_that_no_gpu_takes_is_refused(tmp_path):
    code = "driver.GRID_LIMITS = (2, 2, 2); driver.install(); crop(torch.float32, impl='triton')"
    done = python(code, tmp_path)
    assert done.returncode == 1 and "AssertionError: no GPU takes a grid of" in done.stderr


def test_an_empty_grid_launches_nothing(tmp_path):
    """As with Triton's own driver."""
    code = """
launches = driver.install()
from irnet_kernels.segment.triton import segment_align_kernel as kernel
x = torch.ones(4, 4)
for rows in (0, 1):
    kernel[(rows, 1)](x, x, rows, 4, BLOCK_M=16, BLOCK_N=16)
print(launches)
"""
    done = python(code, tmp_path)
    assert done.stdout == "1 launches of 1 kernels\n", done.stderr


def test_the_reference_answers_where_that_is_asked_for(tmp_path):
    code = "driver.install(answer=True); print(torch.equal(crop(torch.float32, impl='triton'), crop(torch.float32)))"
    assert python(code, tmp_path).stdout == "True\n"


def test_auto_never_takes_it(tmp_path):
    code = "launches = driver.install(); crop(torch.float32); print(launches)"
    assert python(code, tmp_path).stdout == "0 launches of 0 kernels\n"


def test_the_interpreter_is_no_compiler(tmp_path):
    done = python("driver.install()", tmp_path, TRITON_INTERPRET="1")
    assert done.returncode == 1 and "RuntimeError: TRITON_INTERPRET=1: Triton compiles nothing" in done.stderr


def test_a_module_runs_with_it(tmp_path):
    (tmp_path / "program.py").write_text(
        LAUNCHED + "import sys; crop(torch.float32, impl='triton'); print(sys.argv[1:])"
    )
    paths = f"{tmp_path}:{ROOT}:{ROOT / 'kernels'}"
    done = python("", tmp_path, "-m", "irnet_kernels.aot.driver", "program", "--word", PYTHONPATH=paths)
    assert done.stdout == "['--word']\n" and done.stderr.strip().endswith("1 launches of 1 kernels"), done.stderr
