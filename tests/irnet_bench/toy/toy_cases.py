"""A case over three tiny compiled kernels, C++, CUDA and Triton, which can be damaged. For tests of the harness.

IRNET_TOY_DAMAGE=slower|buffer|wrong damages all of them; IRNET_TOY_INTERPRET=1 enters the Triton kernel on a CPU, too.
"""

import ctypes
import functools
import hashlib
import os
import shutil
import subprocess
import tempfile
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import torch
from torch import Tensor

from irnet_bench.case import Implementation, Setup, Work, case
from irnet_kernels.aot import compiled, interpreter
from irnet_kernels.aot.compiled import CudaSource, TritonKernel
from irnet_kernels.aot.tools import ToolUnavailable

HERE = Path(__file__).resolve().parent
DAMAGES = ("", "slower", "buffer", "wrong")
Kernel = Callable[[Tensor, Tensor], Tensor]


# On a CPU it is timed on what a core's own cache holds, as tests run beside other work.
@case("kernels", cpu={"n": 1 << 15}, cuda={"n": 1 << 26}, gate={"n": 1 << 18}, dtypes={"cuda": ("float32",)})
def scale_add(s: Setup) -> Work:
    """2 x + y, a number at a time."""
    implementations = {
        "reference": Implementation(lambda x, y: 2 * x + y),
        "plain": Implementation(lambda x, y: torch.add(y, x, alpha=2), peer=True),
    }
    kernels = {"cpp": cpp_kernel} if s.device.type == "cpu" else {"cuda": cuda_kernel, "triton": triton_kernel}
    if s.device.type == "cpu" and os.environ.get("IRNET_TOY_INTERPRET") == "1":
        kernels["triton"] = interpreted_kernel
    for name, build in kernels.items():
        implementations[name] = implementation(build, damage())
    return Work(
        [s.normal(s.n), s.normal(s.n)],
        implementations,
        bytes={"forward": 12 * s.n, "backward": 8 * s.n, "step": 20 * s.n},
        flops={"forward": 2 * s.n, "backward": s.n, "step": 3 * s.n},
        items=s.n,
        unit="numbers",
        baseline="plain",
    )


def triton_kernels() -> list[TritonKernel]:
    return _triton_module(False, damage()).kernels()


def cuda_sources() -> list[CudaSource]:
    return [CudaSource(HERE / "toy.cu", _flags(damage()))]


def damage() -> str:
    """What IRNET_TOY_DAMAGE says."""
    chosen = os.environ.get("IRNET_TOY_DAMAGE", "")
    if chosen not in DAMAGES:
        raise ValueError(f"IRNET_TOY_DAMAGE={chosen}: there are {', '.join(DAMAGES[1:])}")
    return chosen


def implementation(build: Callable[[str], Kernel], damage: str) -> Implementation:
    """With a gradient, which is made of PyTorch's own operators; skipped where the kernel cannot be built."""
    try:
        kernel = build(damage)
    except ToolUnavailable as reason:
        return Implementation(None, missing=str(reason))
    return Implementation(lambda x, y: ScaleAdd.apply(x, y, kernel))


class ScaleAdd(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x: Tensor, y: Tensor, kernel: Kernel) -> Tensor:
        return kernel(x, y)

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor, Tensor, None]:
        return 2 * grad, grad, None


def cpp_kernel(damage: str) -> Kernel:
    if not shutil.which("g++"):
        raise ToolUnavailable("there is no g++ (apt install g++)")
    name, folder = f"irnet_toy_{damage or 'sound'}", Path(torch.__file__).parent
    command = ["g++", "-O3", "-std=c++20", "-fPIC", "-shared", f"-DTOY_LIBRARY={name}", *_flags(damage)]
    torch.ops.load_library(_built(HERE / "toy.cpp", command, [f"-I{folder}/include", f"-L{folder}/lib", "-ltorch_cpu"]))
    return getattr(torch.ops, name).scale_add


def cuda_kernel(damage: str) -> Kernel:
    command = [compiled.nvcc(), "-O3", "-shared", "-Xcompiler", "-fPIC", "-arch=native", *_flags(damage)]
    library = ctypes.CDLL(_built(HERE / "toy.cu", command, []))
    library.scale_add_scratch.restype = ctypes.c_int64

    def run(x: Tensor, y: Tensor) -> Tensor:
        out, n = torch.empty_like(x), ctypes.c_int64(x.numel())
        scratch = x.new_empty(library.scale_add_scratch(n))
        pointers = [ctypes.c_void_p(tensor.data_ptr()) for tensor in (x, y, out, scratch)]
        error = library.scale_add(*pointers, n, ctypes.c_void_p(torch.cuda.current_stream().cuda_stream))
        if error:
            raise RuntimeError(f"CUDA error {error}")
        return out

    return run


def triton_kernel(damage: str) -> Kernel:
    return _triton_module(False, damage).scale_add


def interpreted_kernel(damage: str) -> Kernel:
    return _triton_module(True, damage).scale_add


@functools.cache
def _triton_module(interpret: bool, damage: str) -> ModuleType:
    module = interpreter.load(HERE / "toy_triton.py", interpret)
    if damage:
        setattr(module, damage.upper(), module.tl.constexpr(True))
    return module


def _flags(damage: str) -> tuple[str, ...]:
    return (f"-DTOY_{damage.upper()}",) if damage else ()


def _built(source: Path, command: list[str], libraries: list[str]) -> str:
    """The path of the shared library, which is built unless the same source was built by the same command before."""
    digest = hashlib.sha256(source.read_bytes() + repr((command, libraries, torch.__version__)).encode()).hexdigest()[
        :16
    ]
    path = Path(tempfile.gettempdir()) / f"irnet-toy-{os.getuid()}" / f"{digest}.so"
    if not path.exists():
        path.parent.mkdir(mode=0o700, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=path.parent) as folder:
            new = Path(folder) / path.name
            subprocess.run([*command, str(source), "-o", str(new), *libraries], check=True)
            new.replace(path)
    return str(path)
