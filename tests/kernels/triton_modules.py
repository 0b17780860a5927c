"""What the tests of all Triton modules share: copies of a module on a device, guarded memory, kernels that only note
how they are launched. Knows no operator."""

import importlib.util
import os
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor

from irnet_kernels.aot import interpreter, tools
from tests.tools import here

# With NumPy 2.4 the interpreter of Triton 3.6 fails where a kernel loops.
_OLD = bool(importlib.util.find_spec("triton")) and tools.triton_version().startswith("triton 3.6")
_LOOPS = not _OLD or tuple(map(int, np.__version__.split(".")[:2])) < (2, 4)
_REASON = "the interpreter of Triton 3.6 cannot loop with NumPy 2.4 (take a later Triton or NumPy 2.3)"
needs_interpreter = pytest.mark.skipif(not _LOOPS, reason=_REASON)


def load(op: str, interpret: bool):
    """A fresh copy of the Triton module of `op` (roi, gru, graph, segment)."""
    return here(interpreter.load, f"irnet_kernels.{op}.triton", interpret=interpret)


def copy_on(param: str, op: str, first_call: Callable):
    """A copy whose launchers run on its `device`, "interpreted" or "cuda"; skips the test where they cannot.

    first_call  a small call of a launcher, given the copy
    """
    if param == "cuda" and not torch.cuda.is_available():
        pytest.skip("no GPU")
    if param == "cuda" and os.environ.get("TRITON_INTERPRET") == "1":
        pytest.skip("TRITON_INTERPRET=1: nothing is compiled in this process")
    module = load(op, interpret=param == "interpreted")
    module.device = "cpu" if param == "interpreted" else "cuda"
    try:
        first_call(module)
    except Exception as error:
        if "only 0-dimensional arrays" in str(error):
            pytest.skip(_REASON)
        raise
    return module


def guarded(t: Tensor, filler: float) -> tuple[Tensor, Tensor]:
    """The tensor between two zones of `filler`, maps and patches in channels_last; and the whole memory."""
    zone = 64
    whole = torch.full((t.numel() + 2 * zone,), filler, dtype=t.dtype, device=t.device)
    packed = torch.empty(t.shape, memory_format=torch.channels_last if t.dim() == 4 else torch.contiguous_format)
    return whole.as_strided(t.shape, packed.stride(), zone).copy_(t), whole


class Noted:
    """A kernel that only notes how it is launched: (name, grid, arguments, named arguments)."""

    def __init__(self, kernel, launches: list):
        self.__name__, self.arg_names, self.launches = kernel.__name__, kernel.arg_names, launches

    def __getitem__(self, grid):
        return lambda *given, **named: self.launches.append((self.__name__, grid, given, named))
