"""Calls every compiled implementation of the chosen cases once, unmeasured: what a sanitizer or a profiler watches, and
what fills Triton's cache where a driver launches nothing.

compute-sanitizer --tool memcheck python -m irnet_bench.exercise --device cuda
ncu --profile-from-start off python -m irnet_bench.exercise --device cuda --shape cuda --profile
python -m irnet_kernels.aot.driver irnet_bench.exercise --device cpu --shape cuda --implementation triton
"""

import argparse
import contextlib
import sys

import torch

from irnet.engine.build import choose_device
from irnet.options import tell_defaults

from .case import DTYPES, Setup, Work, cases
from .machine import synchronize
from .measure import mode_call


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--device", default="cpu", help="cpu, cuda, cuda:1, ...")
    parser.add_argument("--filter", default="", metavar="TEXT", help="only cases whose name contains TEXT")
    parser.add_argument("--first", default="", metavar="TEXT", help="cases whose name contains TEXT come first")
    parser.add_argument("--cases", action="append", default=[], metavar="FILE", help="a Python file with further cases")
    parser.add_argument(
        "--implementation", nargs="+", metavar="NAME", help="only these, such as cuda; auto for one each"
    )
    parser.add_argument(
        "--shape", choices=("gate", "cpu", "cuda"), default="gate", help="a case's shape: gate is small"
    )
    parser.add_argument("--dtype", nargs="+", choices=list(DTYPES), default=["float32"], help="of the inputs")
    parser.add_argument("--profile", action="store_true", help="call twice, and switch a profiler on the second time")
    tell_defaults(parser)
    options = parser.parse_args(arguments)
    device = choose_device(options.device)
    chosen, called = cases("kernels", options.filter, options.cases), 0
    for case in sorted(chosen, key=lambda case: options.first not in case.name):  # stable
        for dtype in options.dtype if case.shapes[options.shape] else []:
            work = case.build(Setup(case.shapes[options.shape], DTYPES[dtype], device))
            for name in _implementations(work, options.implementation):
                called += 1
                implementation = work.implementations[name]
                for mode in ("step",) if options.profile else work.modes:
                    call = mode_call(work, implementation, mode)
                    if options.profile:
                        call()
                    synchronize(device)
                    with torch.cuda.profiler.profile() if options.profile else contextlib.nullcontext():
                        call()
                        synchronize(device)
                print(f"{case.name} {name} {dtype}: {', '.join(work.modes)}", flush=True)
    if not called:
        print("nothing was called: there is no such implementation here", file=sys.stderr)
    return 0 if called else 1


def _implementations(work: Work, chosen: list[str] | None) -> list[str]:
    """The compiled implementations of a case, the one that "auto" takes first; of these the chosen ones."""
    own = work.compiled()
    return own[:1] if chosen == ["auto"] else [name for name in own if not chosen or name in chosen]


if __name__ == "__main__":
    torch.set_num_threads(1)
    sys.exit(main())
