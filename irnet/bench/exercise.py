"""Calls every compiled implementation of the chosen cases once, small and unmeasured: what a sanitizer watches.

compute-sanitizer --tool memcheck python -m irnet.bench.exercise --device cuda
"""

import argparse
import sys

import torch

from ..engine.setup import choose_device
from .case import DTYPES, Setup, cases
from .machine import synchronize
from .measure import mode_call


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--filter", default="", metavar="TEXT", help="only cases whose name contains TEXT")
    parser.add_argument("--cases", action="append", default=[], metavar="FILE", help="a Python file with further cases")
    parser.add_argument("--dtype", nargs="+", choices=list(DTYPES), default=["float32"])
    options = parser.parse_args(arguments)
    device = choose_device(options.device)
    for case in cases("kernels", options.filter, options.cases):
        for dtype in options.dtype if case.shapes["gate"] else []:
            work = case.build(Setup(case.shapes["gate"], DTYPES[dtype], device))
            for name, contestant in work.contestants.items():
                if contestant.peer or contestant.call is None or name == work.reference:  # PyTorch's own kernels
                    continue
                for mode in work.modes:
                    mode_call(work, contestant, mode)()
                    synchronize(device)
                print(f"{case.name} {name} {dtype}: {', '.join(work.modes)}", flush=True)
    return 0


if __name__ == "__main__":
    torch.set_num_threads(1)
    sys.exit(main())
