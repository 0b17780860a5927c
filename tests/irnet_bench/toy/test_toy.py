"""The toy kernels, sound and damaged: compiled for every target, and seen where something is wrong with them."""

import dataclasses
import functools
import re
import types
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from irnet_bench.case import Setup, Work, modules
from irnet_bench.measure import ERROR, OK, examine
from irnet_kernels import counts
from irnet_kernels.aot import compiled, interpreter, tools
from irnet_kernels.aot.cubin import Resources
from tests.tools import here

TOY = Path(__file__).parent

SM = ["sm_80", "sm_90", "sm_100"]


def toy_work(monkeypatch, damage: str = "", n: int = 4099) -> Work:
    """The toy's case with the C++ kernel and the interpreted Triton kernel."""
    monkeypatch.setenv("IRNET_TOY_DAMAGE", damage)
    monkeypatch.setenv("IRNET_TOY_INTERPRET", "1")
    return toy().scale_add.build(Setup({"n": n}, torch.float32, torch.device("cpu")))


def toy():
    return modules([str(TOY / "toy_cases.py")])[-1]


@pytest.fixture(scope="module")
def triton_rows() -> dict[str, list[Resources]]:
    """The toy kernel's rows, sound and damaged."""
    return {damage: toy_rows("triton_kernels", compiled.triton_resources, damage) for damage in ("", "slower")}


@pytest.fixture(scope="module")
def cuda_rows() -> dict[str, list[Resources]]:
    return {damage: toy_rows("cuda_sources", compiled.cuda_resources, damage) for damage in ("", "slower")}


def toy_rows(kind: str, read: Callable, damage: str) -> list[Resources]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("IRNET_TOY_DAMAGE", damage)
        return [row for kernel in here(getattr(toy(), kind)) for row in here(read, kernel)]


def test_interpreted_kernel_gives_what_pytorch_gives():
    module = here(interpreter.load, TOY / "toy_triton.py", True)
    for n in (1, 4096, 4099):
        x, y = torch.randn(n), torch.randn(n)
        assert torch.equal(module.scale_add(x, y), 2 * x + y)


def test_triton_kernels_are_compiled_for_every_target(triton_rows):
    rows = triton_rows[""]
    assert [row.target for row in rows] == SM * 2, "two configurations"
    assert len({row.kernel for row in rows}) == 2 and "BLOCK=4096" in rows[-1].kernel
    check_sound(rows, "triton")


def test_cuda_kernels_are_compiled_for_every_target(cuda_rows):
    rows = cuda_rows[""]
    assert [row.target for row in rows] == SM
    assert rows[0].kernel == "scale_add_kernel"
    check_sound(rows, "nvcc")


def check_sound(rows: list[Resources], source: str) -> None:
    for row in rows:
        assert row.source == source and re.fullmatch(rf"{source} \d+\.\d+(\.\d+)?", row.version)
        assert 0 < row.registers <= 255 and row.instructions > 0
        assert (row.shared_bytes, row.spill_bytes, row.stack_bytes) == (0, 0, 0)


def test_absent_tools_have_a_reason(monkeypatch):
    monkeypatch.setattr(tools.os, "access", lambda *arguments: False)
    find_spec = tools.importlib.util.find_spec
    monkeypatch.setattr(tools.importlib.util, "find_spec", lambda name: None if name == "triton" else find_spec(name))
    rows, absent = compiled.resources([toy()])
    assert rows == []
    assert [reason for line in absent for reason in ("pip install triton", "set CUDA_HOME") if reason in line] == [
        "pip install triton",
        "set CUDA_HOME",
    ]


def test_resources_are_those_of_all_kernels_that_a_module_tells_of(triton_rows, cuda_rows):
    rows, absent = compiled.resources([toy(), dataclasses])
    assert (rows, absent) == (triton_rows[""] + cuda_rows[""], [])


def test_two_kernels_of_one_name_are_refused(cuda_rows):
    with pytest.raises(ValueError, match=r"one name: nvcc scale_add_kernel sm_80"):
        compiled.resources([types.SimpleNamespace(cuda_sources=toy().cuda_sources)] * 2)


def test_sound_toy_is_right_in_every_mode(monkeypatch, cpu):
    work = toy_work(monkeypatch)
    results = examine(work, cpu)
    assert {mode for _, mode in results} == {"forward", "backward", "step"}
    for (name, _mode), result in results.items():
        absent = not work.implementations[name].call
        assert result.status == OK or absent, (name, result.reason)


def test_wrong_toy_is_off_in_one_element(monkeypatch, cpu):
    work = toy_work(monkeypatch, "wrong")
    expected = work.implementations["reference"].call(*work.inputs)
    for name in present(work):
        assert (work.implementations[name].call(*work.inputs) != expected).sum() == 1, name
        assert examine(work, cpu)[name, "forward"].status == ERROR


def test_toy_with_a_buffer_allocates_one_output_more(monkeypatch, cpu):
    taken = {}
    for damage in ("", "buffer"):
        work = toy_work(monkeypatch, damage)
        for name in present(work):
            call = functools.partial(work.implementations[name].call, *work.inputs)
            taken[name, damage] = counts.count(call, cpu).allocated_bytes
    for name in present(work):
        assert taken[name, "buffer"] - taken[name, ""] == 4099 * 4, name


def present(work: Work) -> list[str]:
    """Of the two compiled implementations those that this machine can build."""
    found = {name: work.implementations[name].missing for name in ("cpp", "triton")}
    if all(found.values()):
        pytest.skip("; ".join(found.values()))
    return [name for name, missing in found.items() if not missing]


@pytest.mark.parametrize("rows", ["triton_rows", "cuda_rows"])
def test_slower_toy_has_more_instructions(rows, request):
    rows = request.getfixturevalue(rows)
    for sound, slower in zip(rows[""], rows["slower"], strict=True):
        assert slower.kernel == sound.kernel and slower.instructions >= 1.15 * sound.instructions


def test_an_unknown_damage_is_refused(monkeypatch):
    monkeypatch.setenv("IRNET_TOY_DAMAGE", "louder")
    with pytest.raises(ValueError, match="slower"):
        toy().damage()


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_toy_is_right_on_a_gpu(monkeypatch):
    device = torch.device("cuda")
    work = toy().scale_add.build(Setup({"n": 4099}, torch.float32, device))
    for (name, _mode), result in examine(work, device).items():
        assert result.status == OK or work.implementations[name].missing, (name, result.reason)
