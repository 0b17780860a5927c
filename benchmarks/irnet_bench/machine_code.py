"""`irnet bench machine-code`: prints what the kernels that cases tell of consist of. Reads no code itself."""

import argparse

from irnet_kernels.aot.compiled import TARGETS, TritonKernel
from irnet_kernels.aot.machine_code import read
from irnet_kernels.aot.tools import ToolUnavailable

from .case import modules


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `irnet bench machine-code`."""
    parser.add_argument(
        "--filter", default="", metavar="TEXT", help="only kernels whose name and arguments contain TEXT"
    )
    parser.add_argument("--target", type=int, nargs="+", choices=TARGETS, default=[90], help="GPUs by capability")
    parser.add_argument("--source", choices=["triton", "nvcc", "both"], default="both", help="which compiler's kernels")
    parser.add_argument("--cases", action="append", default=[], metavar="FILE", help="a Python file with further cases")


def run(options: argparse.Namespace) -> int:
    """Print the machine code of the chosen kernels, each as soon as it is read; 1 where a tool is absent."""
    absent, count = [], 0
    functions = {"triton": ["triton_kernels"], "nvcc": ["cuda_sources"], "both": ["triton_kernels", "cuda_sources"]}
    for module in modules(options.cases):
        for function in functions[options.source]:
            try:
                for kernel in getattr(module, function, list)():
                    if isinstance(kernel, TritonKernel) and options.filter not in str(kernel):
                        continue  # its name is known before it is compiled
                    for code in read(kernel, [target for target in options.target if target in kernel.targets]):
                        if options.filter in code.resources.kernel:
                            print(code, flush=True)
                            count += 1
            except ToolUnavailable as reason:
                absent.append(f"{function} of {module.__name__}: {reason}")
    for line in absent:
        print(f"not read {line}")
    print(f"{count} kernels")
    return 1 if absent else 0
