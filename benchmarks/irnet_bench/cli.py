"""The options of `irnet bench`: reads them, calls the room that does the work, prints. Measures nothing itself."""

import argparse
import functools
import os
import sys
from collections.abc import Callable
from pathlib import Path

from irnet.options import tell_defaults

from .case import DTYPES, MODES, SUITES

DEFAULT_OUTPUT = "runs/bench/DEVICE.jsonl"
EXTRA = ("pandas", "psutil", "scipy")  # of pyproject.toml's `bench`


def add_parsers(command: Callable[..., argparse.ArgumentParser]) -> None:
    """The subcommands of `irnet bench`; `command(name, run, text)` adds one."""
    abouts = {
        "kernels": "every operator beside its peers",
        "model": "the roll-out of the model",
        "training": "whole training steps",
        "data": "loading and generating data",
        "all": "all suites",
    }
    for suite in (*SUITES, "all"):
        sub = command(suite, _measure, f"measure {abouts[suite]}")
        _measure_options(sub, suite)
        tell_defaults(sub)

    from . import compare, gate, machine_code, report

    others = {
        "compare": (compare, "hold one file of records against another"),
        "report": (report, "write records as an HTML page and as Markdown tables"),
        "gate": (gate, "hold what does not wobble against the committed baselines"),
        "machine-code": (machine_code, "read what compiled kernels consist of"),
    }
    for name, (module, about) in others.items():
        sub = command(name, functools.partial(_run, module.run), about)
        module.add_arguments(sub)
        tell_defaults(sub)


def _run(run: Callable[[argparse.Namespace], int], options: argparse.Namespace) -> int:
    """Run a subcommand that may need a package of the extra `bench`: measuring and the gate need none."""
    from irnet.errors import InputError

    try:
        return run(options)
    except ModuleNotFoundError as error:
        package = (error.name or "").partition(".")[0]
        if package not in EXTRA:
            raise
        raise InputError(package, "is not installed", 'pip install "irnet[bench]"') from error


def _measure_options(parser: argparse.ArgumentParser, suite: str) -> None:
    parser.set_defaults(suite=suite)
    parser.add_argument("--device", default="auto", help="cpu, cuda, cuda:1, ...; auto is the GPU where there is one")
    parser.add_argument("--filter", default="", metavar="TEXT", help="only cases whose name contains TEXT")
    parser.add_argument("--cases", action="append", default=[], metavar="FILE", help="a Python file with further cases")
    parser.add_argument(
        "--sweep", nargs="+", default=[], metavar="NAME=NUMBERS", help="vary the shape: regions=1,10,50,100,300"
    )
    parser.add_argument("--dtype", nargs="+", choices=list(DTYPES), help="in place of each case's own")
    parser.add_argument("--mode", nargs="+", choices=MODES, default=list(MODES), help="what is timed")
    parser.add_argument("--without", default="", metavar="TEXT", help="no implementations whose name contains TEXT")
    parser.add_argument("--pace-only", action="store_true", help="time irnet's own and one peer each")
    parser.add_argument("--seconds", type=float, default=0.5, help="how long an implementation is timed in each mode")
    parser.add_argument("--seed", type=int, default=0, help="of the inputs")
    parser.add_argument("--threads", type=int, help="CPU threads of PyTorch, in place of its own choice")
    parser.add_argument("--output", metavar="JSONL", default=DEFAULT_OUTPUT, help="records are appended here")
    parser.add_argument("--fresh", action="store_true", help="do not go on with an unfinished run of the file")


def _measure(options: argparse.Namespace) -> int:
    import torch

    from irnet.engine.build import choose_device
    from irnet.errors import check_bounds

    from . import run
    from .case import cases
    from .measure import Settings

    check_bounds("--seconds", options.seconds, 0, 86_400)
    check_bounds("--threads", options.threads, 1, 4096)
    check_bounds("--seed", options.seed, 0, 2**63 - 1)
    device = choose_device(options.device)
    if options.threads:
        torch.set_num_threads(options.threads)
    chosen = cases(options.suite, options.filter, options.cases)
    groups = run.plan(chosen, device, run.parse_sweep(options.sweep), options.dtype)
    output = Path(options.output)
    if options.output == DEFAULT_OUTPUT:
        output = output.with_stem(device.type)
    modes = tuple(mode for mode in MODES if mode in options.mode)
    settings = Settings(modes, options.seconds, options.seed, options.without, options.pace_only)
    try:
        measured = run.run(groups, output, device, settings, options.fresh)
    except run.DeviceLost as lost:
        print(f"{lost}; another process goes on", file=sys.stderr, flush=True)
        words = [word for word in sys.argv[1:] if word != "--fresh"]
        os.execv(sys.executable, [sys.executable, "-m", "irnet.cli", *words])
    print(run.text(measured))
    print(output)
    wrong = run.failed(measured)
    for record in wrong:
        print(f"{record.status}: {record.label}: {record.reason}")
    return 1 if wrong else 0
