"""Every kernel of the operators as it is compiled: each launched configuration of Triton's, and the .cu files."""

from pathlib import Path

from .compiled import CudaSource, TritonKernel
from .interpreter import load
from .tools import ToolUnavailable

SOURCES = Path(__file__).resolve().parents[3] / "csrc"


def triton_kernels() -> list[TritonKernel]:
    """Every kernel in the configurations that are launched for 512 channels."""
    modules = (load(f"irnet_kernels.{name}.triton", interpret=False) for name in ("roi", "gru", "graph", "segment"))
    return [TritonKernel(**kernel) for module in modules for kernel in module.kernels()]


def cuda_sources() -> list[CudaSource]:
    """The .cu files, with those flags of setup.py that change code; they need none of PyTorch's."""
    if not SOURCES.is_dir():
        raise ToolUnavailable("the C++ and CUDA sources are not installed (run from a source tree)")
    flags = ("-O3", "-std=c++17", "-fmad=false", f"-I{SOURCES / 'include'}")
    return [CudaSource(path, flags) for path in sorted(SOURCES.glob("cuda/*.cu"))]
