"""Every compiled implementation called once: those that are chosen, in the cases that are, and a word where none is."""

import pytest
import torch

import irnet_kernels
from irnet_bench import exercise
from irnet_bench.case import Implementation, Work

OWN = [impl for impl in irnet_kernels.available()["crop_resize"]["cpu"] if impl != "reference"]


@pytest.mark.skipif(not OWN, reason="there is no compiled implementation")
@pytest.mark.parametrize("chosen", [[], ["auto"], OWN[-1:]], ids=["all", "auto", "one"])
def test_what_is_called_is_printed(chosen, capsys):
    words = ["--implementation", *chosen] if chosen else []
    assert exercise.main(["--filter", "crop_resize", "--dtype", "float32", *words]) == 0
    called = {"": OWN, "auto": OWN[:1]}.get("".join(chosen), chosen)
    lines = [f"crop_resize {impl} float32: forward, backward, step" for impl in called]
    assert capsys.readouterr().out.splitlines() == lines


def test_auto_is_the_first_that_runs_here():
    ways = {"reference": torch.neg, "cuda": None, "triton": torch.neg, "cpp": torch.neg}
    work = Work([], {name: Implementation(call) for name, call in ways.items()} | {"p": Implementation(abs, peer=True)})
    assert exercise._implementations(work, ["auto"]) == ["triton"]
    assert exercise._implementations(work, None) == ["triton", "cpp"]


def test_the_named_cases_come_first(capsys):
    chosen = ["--filter", "segment", "--first", "outer", "--implementation", "auto"]
    if exercise.main(chosen):
        pytest.skip("there is no compiled implementation")
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()] == ["segment_outer", "segment_matmul"]


def test_nothing_to_call_is_a_failure(capsys):
    assert exercise.main(["--filter", "crop_resize", "--implementation", "no_such"]) == 1
    assert "no such implementation" in capsys.readouterr().err
