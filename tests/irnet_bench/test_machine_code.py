"""The command that prints machine code: which kernels, and what cannot be read."""

import re
from pathlib import Path

from irnet.cli import main
from irnet_kernels.aot import tools
from tests.tools import here

TOY = Path(__file__).parent / "toy" / "toy_cases.py"


def test_command_prints_the_chosen_kernels(capsys):
    here(tools.triton_version)
    options = ["--cases", str(TOY), "--source", "triton", "--filter", "scale_add_kernel", "--target", "80", "90"]
    assert main(["bench", "machine-code", *options]) == 0
    printed = capsys.readouterr().out
    assert re.findall(r"^scale_add_kernel\(.*BLOCK=(\d+)\).* (sm_\d+),", printed, re.MULTILINE) == [
        ("1024", "sm_80"),
        ("1024", "sm_90"),
        ("4096", "sm_80"),
        ("4096", "sm_90"),
    ]
    assert printed.endswith("4 kernels\n")


def test_command_tells_what_cannot_be_read(monkeypatch, capsys):
    monkeypatch.setattr(tools.importlib.util, "find_spec", lambda name: None)
    assert main(["bench", "machine-code", "--source", "triton"]) == 1
    assert "not read triton_kernels of irnet_bench.suites.kernels: there is no Triton" in capsys.readouterr().out
