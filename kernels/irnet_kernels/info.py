"""`python -m irnet_kernels.info`: what the operators run on here, with versions. It only tells."""

import importlib.metadata
import platform

import torch

from . import available, extension

# Implementations that have passed their tests on a GPU. A kernel that is not listed is called unverified there.
VERIFIED_ON_GPU: dict[str, str] = {}


def main() -> None:
    print(f"Python {platform.python_version()}, torch {torch.__version__}, Triton {_version('triton')}")
    print(f"CPU: {torch.backends.cpu.get_cpu_capability()}, {torch.get_num_threads()} threads")
    if torch.cuda.is_available():
        for index in range(torch.cuda.device_count()):
            major, minor = torch.cuda.get_device_capability(index)
            print(f"GPU {index}: {torch.cuda.get_device_name(index)}, sm_{major}{minor}, CUDA {torch.version.cuda}")
    else:
        print("GPU: none that torch can use")
    print(f"native extension: {extension.native_reason()}")
    if paths := extension.cpu_paths():
        print(f"C++ on this processor: {paths}")
    try:
        implementations = available()
    except ImportError:  # told of in the line above
        print("operators: none can be chosen until the extension is rebuilt or removed")
        return
    for name, devices in implementations.items():
        for device, present in devices.items():
            marks = [impl if device == "cpu" else _mark(name, impl) for impl in present]
            print(f"{name} on {device}: {', '.join(marks)}")


def _mark(name: str, impl: str) -> str:
    tested = VERIFIED_ON_GPU.get(f"{name}.{impl}")
    return f"{impl} (tested on {tested})" if tested else f"{impl} (unverified on a GPU)"


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


if __name__ == "__main__":
    main()
