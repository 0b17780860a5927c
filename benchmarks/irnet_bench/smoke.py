"""Every compiled implementation of every operator once, at the size it is made for: is it right, and how fast is it?

    python -m irnet_bench.smoke --device cuda

The first thing to run on a new GPU. Each implementation has a process of its own, so that one that ends its process
ends nothing else. They compare with the reference in float64 at the same time; then one after the other is timed,
alone. What is known is printed at once, a table at the end. Exits with 1 where anything failed or missed its budget.
"""

import argparse
import functools
import json
import os
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import IO

import torch

import irnet_kernels
from irnet.engine.build import choose_device
from irnet.options import tell_defaults
from irnet_kernels.numerics import full_float32

from . import timing
from .case import DTYPES, Setup, Work, cases
from .measure import CorrectnessCheck, mode_call, worst

MODES = ("forward", "step")
READY = "ready"  # the line by which a process says that it waits for its turn to be timed


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--device", default="cuda", help="cpu, cuda, cuda:1, ...")
    parser.add_argument("--filter", default="", metavar="TEXT", help="only cases whose name contains TEXT")
    parser.add_argument("--cases", action="append", default=[], metavar="FILE", help="a Python file with further cases")
    parser.add_argument(
        "--dtype", nargs="+", choices=list(DTYPES), default=["bfloat16", "float32"], help="of the inputs"
    )
    parser.add_argument("--seconds", type=float, default=0.05, help="how long an implementation is timed in each mode")
    parser.add_argument("--jobs", type=int, default=os.cpu_count(), help="processes at the same time")
    parser.add_argument("--one", nargs=2, metavar=("CASE", "IMPLEMENTATION"), help=argparse.SUPPRESS)
    tell_defaults(parser)
    options = parser.parse_args(arguments)
    if options.one:
        return _one(*options.one, options)
    device = torch.device(options.device).type  # nothing is started on it here
    shared = ["--device", options.device, "--seconds", str(options.seconds), "--dtype", *options.dtype]
    shared += [word for file in options.cases for word in ("--cases", file)]
    jobs = [
        Job([sys.executable, "-m", __spec__.name, "--one", case.name, impl, *shared])
        for case in cases("kernels", options.filter, options.cases)
        for impl in compiled_implementations(case.name, device)
    ]
    pool = ThreadPoolExecutor(options.jobs)
    try:
        list(pool.map(Job.compare, jobs))
        for job in jobs:
            job.time()
    except KeyboardInterrupt:  # its time is over: what is known is printed
        print("interrupted", flush=True)
    finally:
        pool.shutdown(wait=False, cancel_futures=True)
        for job in jobs:
            job.end()
    print("\n".join(table(jobs)))
    return 1 if any(job.failed or not job.timed for job in jobs) else 0


def compiled_implementations(case: str, device: str) -> list[str]:
    """The implementations, but the reference, of the operator after which a case is called."""
    available = irnet_kernels.available()
    op = max((op for op in available if case.startswith(op)), key=len, default=None)
    return [impl for impl in available[op][device] if impl != "reference"] if op else []


@dataclass
class Job:
    """The process of one implementation of one case, and the facts that it has printed."""

    command: list[str]
    process: subprocess.Popen | None = None
    facts: list[dict] = field(default_factory=list)
    errors: IO[str] = field(default_factory=functools.partial(tempfile.TemporaryFile, "w+"))
    failed: str = ""
    timed: bool = False

    @property
    def name(self) -> str:
        at = self.command.index("--one")
        return " ".join(self.command[at + 1 : at + 3])

    def compare(self) -> None:
        """Start the process and listen until it waits for its turn to be timed."""
        pipe = subprocess.PIPE
        self.process = subprocess.Popen(self.command, stdin=pipe, stdout=pipe, stderr=self.errors, text=True)
        self._listen(READY)

    def time(self) -> None:
        """Let the process time, and listen to its end."""
        if not self.failed:
            print("go", file=self.process.stdin, flush=True)
            self._listen("")
            self.timed = not self.failed

    def end(self) -> None:
        if self.process and self.process.poll() is None:
            self.process.kill()
            self.process.wait()

    def _listen(self, last: str) -> None:
        """Print and keep each line until the `last` one; anything but an orderly end is a failure."""
        for line in self.process.stdout:
            if last and line.strip() == last:
                return
            if not line.startswith("{"):  # a library greets
                print(self.name, line, end="", flush=True)
                continue
            fact = json.loads(line)
            self.facts.append(fact)
            if fact.get("error", 0) > fact.get("budget", 0) or fact.get("error") != fact.get("error"):
                self.failed = "over budget"
            print(self.name, " ".join(f"{name}={_short(value)}" for name, value in fact.items()), flush=True)
        if last or self.process.wait():
            code = self.process.wait()
            self.errors.seek(0)
            lines = self.errors.read().strip().splitlines() or ["no word of why"]
            self.failed = f"exit code {code}: {lines[-1]}"
            print(self.name, "FAILED", self.failed, *lines[-12:], sep="\n  ", flush=True)


def table(jobs: list[Job]) -> list[str]:
    """A line for every implementation, dtype and mode: relative error, its budget, median time."""
    lines = [f"{'implementation':34} {'dtype':9} {'mode':8} {'error':>9} {'budget':>9} {'ms':>9}"]
    for job in jobs:
        by_mode: dict[tuple, dict] = {}
        for fact in job.facts:
            by_mode.setdefault((fact["dtype"], fact["mode"]), {}).update(fact)
        for (dtype, mode), fact in by_mode.items():
            error, budget = (f"{fact[k] / fact['scale']:9.2e}" if "scale" in fact else "        -" for k in BOUNDS)
            over = "  OVER BUDGET" if not fact.get("error", 0) <= fact.get("budget", 0) else ""
            lines.append(f"{job.name:34} {dtype:9} {mode:8} {error} {budget} {fact.get('ms', float('nan')):9.3f}{over}")
        if job.failed:
            lines.append(f"{job.name:34} FAILED {job.failed}")
        elif not job.timed:
            lines.append(f"{job.name:34} not finished")
    return lines


BOUNDS = ("error", "budget")


def _short(value: object) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)


# ------------------------------------------------------------------------------------ in the process of a single job


def _one(name: str, implementation: str, options: argparse.Namespace) -> int:
    device = choose_device(options.device)
    case = next(case for case in cases("kernels", name, options.cases) if case.name == name)
    works = {}
    with full_float32():
        for dtype in options.dtype:
            setup = Setup(case.shapes[device.type], DTYPES[dtype], device)
            works[dtype] = _compare(case.build(setup), implementation, dtype)
        print(READY, flush=True)
        sys.stdin.readline()
        for dtype, work in works.items():
            for mode in MODES:
                milliseconds = 1e3 * _median(work, implementation, mode, device, options.seconds)
                _tell(dtype=dtype, mode=mode, ms=milliseconds)
    return 0


def _compare(work: Work, implementation: str, dtype: str) -> Work:
    """The work, once its errors are printed and all that they needed is freed."""
    check = CorrectnessCheck(work, MODES)
    for mode in MODES:
        judged, what = worst(check(work.implementations[implementation], mode), mode)
        _tell(dtype=dtype, mode=mode, what=what, **vars(judged))
    del check
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    return work


def _median(work: Work, implementation: str, mode: str, device: torch.device, seconds: float) -> float:
    make = functools.partial(mode_call, work, work.implementations[implementation], mode)
    if device.type == "cuda":
        return timing.percentiles(timing.on_gpu([make], seconds)[0])["50"]
    call = make()
    call()
    return timing.percentiles(timing.interleaved({"": call}, seconds)[""])["50"]


def _tell(**facts: object) -> None:
    print(json.dumps(facts), flush=True)


if __name__ == "__main__":
    sys.exit(main())
