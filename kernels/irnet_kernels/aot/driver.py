"""Triton's real way from a launch to machine code, with a driver that launches nothing: the binder, the specialisation
of arguments, the compiler and its cache are Triton's own, the GPU is not there.

    python -m irnet_kernels.aot.driver MODULE [ARGUMENT ...]

runs a module as `python -m` does, with the Triton implementations taking CPU tensors, and prints how much was launched.
What a kernel should have written stays whatever it was. With `pytest -p irnet_kernels.aot.driver` the reference answers
after every launch, so that tests go on to their last one. The cache in TRITON_CACHE_DIR then serves a machine with such
a GPU, with the same Python, PyTorch and Triton, and under the same path: its __grp__*.json files hold absolute ones.
"""

import contextlib
import ctypes
import functools
import os
import re
import runpy
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

CAPABILITY = 90
# What Triton asks a device for: an H100.
PROPERTIES = {"max_shared_mem": 232448, "multiprocessor_count": 132, "warpSize": 32, "max_num_regs": 65536}
GRID_LIMITS = (2**31, 2**16, 2**16)


class Launch(NamedTuple):
    """A kernel that would have been launched now."""

    kernel: str
    grid: tuple[int, int, int]


class Launches(list[Launch]):
    """All that would have been launched since `install`, in order."""

    def __str__(self) -> str:
        return f"{len(self)} launches of {len({launch.kernel for launch in self})} kernels"


def install(capability: int = CAPABILITY, answer: bool = False) -> Launches:
    """Make the driver Triton's own in this process, once and for good; returns the list to which it notes launches.

    capability  that kernels are compiled for: 90 for sm_90
    answer      give the reference's result in place of what was not computed
    Raises RuntimeError where Triton interprets, which compiles nothing; AssertionError is raised by a launch whose grid
    no GPU takes.
    """
    import triton
    from triton.runtime import driver

    from irnet_kernels import dispatch

    if triton.knobs.runtime.interpret:
        raise RuntimeError("TRITON_INTERPRET=1: Triton compiles nothing in this process; unset it")
    launches = Launches()

    def around(name: str, launcher: Callable[..., Any]) -> Callable[..., Any]:
        def run(*arguments: Any) -> Any:
            result = launcher(*arguments)
            return dispatch.overload(name, "reference")(*arguments) if answer else result

        return run

    driver.set_active(_driver(capability, launches))
    dispatch.register_triton_on_cpu(around)
    return launches


def _driver(capability: int, launches: Launches) -> Any:
    """Triton's driver for NVIDIA's GPUs, but for all that would ask a GPU or launch on it."""
    import torch
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.backends.nvidia import driver as nvidia

    class Utils(nvidia.CudaUtils):
        """Compiled and cached like all else; what would ask the GPU is answered here."""

        def __init__(self) -> None:
            with _stand_in_libcuda(triton):
                super().__init__()
            self.get_device_properties = lambda device: PROPERTIES
            # The module, the function, its registers, its spills and its threads at most.
            self.load_binary = lambda name, kernel, shared, device: (1, 1, 0, 0, 1024)

    class Launcher(nvidia.CudaLauncher):
        def __init__(self, src: Any, metadata: Any) -> None:
            self.kernel = metadata.name
            with _stand_in_libcuda(triton):
                super().__init__(src, metadata)

        def __call__(self, x: int, y: int, z: int, *arguments: Any, **options: Any) -> None:
            for size, limit in zip((x, y, z), GRID_LIMITS, strict=True):
                assert 0 <= size < limit, f"no GPU takes a grid of {x} x {y} x {z} programs of {self.kernel}"
            if x * y * z:  # else Triton's own launcher launches nothing
                launches.append(Launch(self.kernel, (x, y, z)))

    class Driver(nvidia.CudaDriver):
        def __init__(self) -> None:
            self.utils = Utils()
            self.launcher_cls = Launcher
            self.get_current_device = lambda: 0
            self.set_current_device = lambda device: None
            self.get_current_stream = lambda device: 0
            self.get_device_capability = lambda device: divmod(capability, 10)

        def get_current_target(self) -> Any:
            return GPUTarget("cuda", capability, PROPERTIES["warpSize"])

        def get_active_torch_device(self) -> torch.device:
            return torch.device("cpu")

    return Driver()


def pytest_configure(config: object) -> None:
    """pytest's hook: the driver is there before a test module is imported."""
    install(answer=True)


@contextlib.contextmanager
def _stand_in_libcuda(triton: Any) -> Iterator[None]:
    """Within, Triton compiles and loads what it links to libcuda.so.1, where there is none."""
    with triton.knobs.nvidia.scope():
        triton.knobs.nvidia.libcuda_path = _libcuda().name
        yield


@functools.cache
def _libcuda() -> tempfile.TemporaryDirectory[str]:
    """A folder with a libcuda.so.1 in which every function that Triton's driver names fails; it is loaded, too.

    What is linked to it needs libcuda.so.1 by name, and so finds the real one on a machine with a GPU.
    """
    from triton.backends.nvidia import driver as nvidia

    sources = Path(nvidia.__file__).parent
    text = "".join(path.read_text() for path in (sources / "driver.c", sources / "driver.py"))
    functions = "".join(
        f"int {name}(void) {{ return 1; }}\n" for name in sorted(set(re.findall(r"\bcu[A-Z]\w+", text)))
    )
    folder = tempfile.TemporaryDirectory(prefix="irnet-libcuda-")
    library = Path(folder.name) / "libcuda.so.1"
    command = [os.environ.get("CC", "gcc"), "-shared", "-fPIC", "-Wl,-soname,libcuda.so.1", "-x", "c", "-"]
    subprocess.run([*command, "-o", str(library)], input=functions, text=True, check=True)
    ctypes.CDLL(str(library), mode=os.RTLD_GLOBAL | os.RTLD_NOW)
    return folder


def main() -> None:
    launches = install()
    sys.argv = sys.argv[1:]
    try:
        runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
    finally:
        print(launches, file=sys.stderr)


if __name__ == "__main__":
    main()
