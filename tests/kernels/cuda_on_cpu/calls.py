"""The kernels of csrc/cuda, compiled as C++ that runs on a CPU, called through ctypes. Knows nothing of PyTorch."""

import ctypes
import subprocess
from pathlib import Path

HERE = Path(__file__).resolve().parent
CSRC = HERE.parents[2] / "csrc"
DTYPES = ("float64", "float32", "bfloat16", "float16")  # in the order of irnet::Dtype
ORDERS = (0, 1, 2)  # in which the threads of a block take turns: first to last, last to first, shuffled


class Shape(ctypes.Structure):
    """irnet::RoiShape"""

    _fields_ = [(name, ctypes.c_int64) for name in ("images", "regions", "channels")] + [
        (name, ctypes.c_int) for name in ("height", "width", "size")
    ]


def build(source: Path, library: Path, *flags: str) -> Path:
    """Compile a source in which CUDA's headers are those of this folder."""
    # With unique symbols the libraries of a process would share the headers' variables; a fortified longjmp refuses to
    # change stacks.
    command = ["g++", "-std=c++17", "-shared", "-fPIC", "-fno-gnu-unique", "-ffp-contract=off"]
    command += [f"-I{HERE}", f"-I{CSRC}", f"-I{CSRC / 'include'}", *flags, "-U_FORTIFY_SOURCE"]
    done = subprocess.run([*command, "-o", str(library), str(source)], capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)} {source}:\n{done.stderr}")
    return library


def call(library: ctypes.CDLL, name: str, dtype: str, shape: Shape, *arguments: int | bool, order: int = 0) -> int:
    """What one of the functions of csrc/include/roi.h returns for these addresses, and for `clamp`."""
    library.set_order(order)
    converted = [ctypes.c_bool(a) if isinstance(a, bool) else ctypes.c_void_p(a) for a in arguments]
    return getattr(library, name)(DTYPES.index(dtype), ctypes.byref(shape), *converted)
