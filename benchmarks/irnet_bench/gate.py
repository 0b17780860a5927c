"""The regression gate: measures what does not wobble and holds it against a committed baseline. Keeps no history.

Held are memory, operators and launches of every implementation; registers, shared memory, spills and instructions of
every compiled kernel; executed instructions of native CPU code; and time, but only as a ratio to a peer in the same
run: the lowest of several takes, held against the highest of those that made the baseline. A result outside its error
budget, or two calls whose bits differ, fail whatever the baseline says.

The baseline is a JSON file of groups. A group's name says what its figures depend on (versions, compiler, processor):
what was measured elsewhere is not held, and the gate says so. It uses neither pandas nor tabulate: the machine with
a GPU need not have them.
"""

import argparse
import contextlib
import json
import platform
import subprocess
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import torch

from irnet import files
from irnet.errors import InputError
from irnet.progress import Progress, tracked
from irnet_kernels import extension
from irnet_kernels.aot import compiled, tools
from irnet_kernels.numerics import full_float32
from irnet_kernels.testing import bits_equal

from . import instructions, machine, ratios
from .case import DTYPES, Case, Job, Setup, Work, cases, modules
from .measure import examine, mode_call
from .records import ERROR, OOM

KINDS = ("counts", "time", "compiled", "instructions")
COUNTS = ("peak_allocated_bytes", "allocated_bytes", "saved_bytes", "operators", "launches")
INSTRUCTION_LIMIT = 0.02  # callgrind's counts of the same code vary by less: see instructions.py
TIME_LIMIT = 0.08  # of the ratio to the peer
TAKES = 5  # of a ratio; they differ: see ratios.py

Figures = dict[str, dict[str, float]]  # group -> name -> value


@dataclass
class Measured:
    """What one passage of the gate measured."""

    figures: Figures = field(default_factory=dict)
    troubles: list[str] = field(default_factory=list)  # wrong, not deterministic, or not measurable
    absent: dict[str, str] = field(default_factory=dict)  # what this machine cannot measure: start of its names -> why
    rows: list[compiled.Resources] = field(default_factory=list)

    def put(self, group: str, name: str, value: float) -> None:
        self.figures.setdefault(group, {})[name] = value


@dataclass(frozen=True)
class Difference:
    """A figure that is not what the baseline says; None where one side does not have it."""

    group: str
    name: str
    was: float | None
    now: float | None

    def __str__(self) -> str:
        if self.was is None:
            return f"new      {self.name}: {self.now:g} ({self.group})"
        if self.now is None:
            return f"gone     {self.name}: was {self.was:g} ({self.group})"
        word = "more" if self.now > self.was else "less"
        change = f", {100 * (self.now / self.was - 1):+.1f}%" if self.was else ""
        return f"{word:8} {self.name}: {self.was:.10g} -> {self.now:.10g}{change} ({self.group})"


def measure(
    chosen: list[Case],
    device: torch.device,
    kinds: Iterable[str],
    baseline: Figures,
    case_files: list[str],
    thorough: bool = False,
    tick: Callable[[Measured], None] = lambda measured: None,
) -> Measured:
    """Measure the figures of these kinds.

    baseline  says which times deserve another take
    thorough  make all takes of times that it does not hold, because the highest is to become the baseline
    tick      called after every case, and after the times, with what has been measured so far
    """
    measured, counted, timed = Measured(), [], []
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # allocations and instructions are those of one thread
    try:
        held = [case for case in chosen if case.shapes["gate"]]
        with full_float32(deterministic=True):
            for case in tracked(held, "gate", "case"):
                for dtype in case.dtypes["gate"]:
                    work = case.build(Setup(case.shapes["gate"], DTYPES[dtype], device))
                    if "counts" in kinds:
                        _count(case, dtype, work, device, measured)
                    if "time" in kinds and work.baseline:
                        timed += [job for name in work.compiled() for job in _jobs(case, name, dtype, work)]
                    if "instructions" in kinds and device.type == "cpu" and "cpp" in work.compiled():
                        counted += _jobs(case, "cpp", dtype, work)
                tick(measured)
    finally:
        torch.set_num_threads(threads)
    if timed:
        with Progress("timing compiled kernels"):
            _take_ratios(timed, device, measured, baseline, case_files, thorough)
        tick(measured)
    with _counting(counted, measured, case_files) as put_instructions:
        if "compiled" in kinds:
            with Progress("reading compiled kernels"):
                _read_resources(chosen, measured, case_files)
        put_instructions()
    return measured


def differences(measured: Figures, baseline: Figures, all_of: bool = True) -> tuple[list[Difference], list[str]]:
    """What differs from the baseline, and the groups that it does not hold.

    all_of  whether every case was measured, so that a figure of the baseline that is missing is gone
    """
    changes, unknown = [], []
    for group, figures in measured.items():
        held = baseline.get(group)
        if held is None:
            unknown.append(group)
            continue
        for name in sorted(figures.keys() | (held.keys() if all_of else set())):
            was, now = held.get(name), figures.get(name)
            if was is None or now is None or not _holds(name, was, now):
                changes.append(Difference(group, name, was, now))
    return changes, unknown


def _holds(name: str, was: float, now: float) -> bool:
    figure = name.rpartition("/")[2]
    if figure == "time_ratio":  # a faster call is no regression
        return now <= was * (1 + TIME_LIMIT)
    if figure == "executed_instructions":
        return abs(now - was) <= INSTRUCTION_LIMIT * was
    return now == was


def read(path: Path) -> Figures:
    """The baseline; {} where there is none yet."""
    if not path.exists():
        return {}
    try:
        figures = json.loads(path.read_text())
        if not all(isinstance(value, (int, float)) for group in figures.values() for value in group.values()):
            raise ValueError("a figure is no number")
        return figures
    except (ValueError, AttributeError) as error:
        raise InputError(path, f"is no baseline ({error})", "write it again with --update") from error


def write(path: Path, figures: Figures) -> None:
    """Write the baseline, a line for every figure."""
    files.write(path, json.dumps(figures, indent=1, sort_keys=True) + "\n")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `irnet bench gate`."""
    parser.add_argument("--baseline", type=Path, default=Path("benchmarks/baseline.json"), help="the JSON file")
    parser.add_argument("--update", action="store_true", help="take what is measured as the baseline")
    parser.add_argument("--add", action="store_true", help="take up only what the baseline does not hold yet")
    parser.add_argument("--device", default="cpu", help="cpu, cuda, cuda:1, ...")
    parser.add_argument("--filter", default="", metavar="TEXT", help="only cases whose name contains TEXT")
    parser.add_argument("--cases", action="append", default=[], metavar="FILE", help="a Python file with further cases")
    parser.add_argument("--kind", nargs="+", choices=KINDS, help="what to measure: all, on a GPU counts")


def run(options: argparse.Namespace) -> int:
    """Measure, compare, print; 1 where anything differs or is wrong."""
    from irnet.engine.build import choose_device

    baseline, device = read(options.baseline), choose_device(options.device)
    chosen = cases("all", options.filter, options.cases)
    kinds = options.kind or (["counts"] if device.type == "cuda" else KINDS)  # a GPU is lent for minutes
    whole = not options.filter  # a group's figures are all of one kind, and what was not measured has no group
    thorough = options.update or options.add
    if "time" in kinds:
        machine.warn_if_loaded(device, machine.condition(device))

    def keep(measured: Measured) -> None:
        """Write what is known so far, so that a run that is ended leaves it."""
        if options.add and measured.figures:
            write(options.baseline, measured.figures | baseline)

    measured = measure(chosen, device, kinds, {} if options.update else baseline, options.cases, thorough, keep)
    changes, unknown = differences(measured.figures, baseline, all_of=whole)
    # What cannot be measured here is not gone.
    changes = [c for c in changes if c.now is not None or not c.name.startswith(tuple(measured.absent))]
    if measured.rows:
        print(compiled.table(measured.rows))
    for line in [
        *(f"not held {name}: {reason}" for name, reason in measured.absent.items()),
        *(f"WRONG    {trouble}" for trouble in measured.troubles),
        *changes,
    ]:
        print(line)
    if options.update and measured.troubles:
        print(f"{options.baseline} stays as it is: what is wrong is no baseline")
        return 1
    for group in unknown:
        count = len(measured.figures[group])
        held = "taken up" if thorough else "not held, --add takes them up"
        print(f"new      {count} figures of {group}: {held}")
    if options.update:
        write(options.baseline, updated(baseline, measured.figures, whole, tuple(measured.absent)))
        print(f"{options.baseline} is up to date")
        return 0
    keep(measured)
    held = sum(len(figures) for group, figures in measured.figures.items() if group not in unknown)
    print(f"{held} figures held, {len(changes)} differ, {len(measured.troubles)} wrong")
    if changes:
        print("if that is meant: the same command with --update")
    # Compilers and processors differ from machine to machine; what constraints.txt pins must be held wherever it is.
    loose = [group for group in unknown if group.startswith(("torch", "triton")) and not options.add]
    if loose:
        print(f"nothing holds {' and '.join(loose)}: a new version needs a new baseline")
    return 1 if changes or measured.troubles or loose else 0


def updated(baseline: Figures, figures: Figures, whole: bool, absent: tuple[str, ...] = ()) -> Figures:
    """The baseline with what was measured; groups of other machines and versions stay.

    whole   whether every case was measured, so that a figure that is missing is gone
    absent  starts of the names of figures that could not be measured here: they stay, too
    """

    def kept(held: dict[str, float]) -> dict[str, float]:
        return {name: value for name, value in held.items() if not whole or (absent and name.startswith(absent))}

    return baseline | {group: kept(baseline.get(group, {})) | new for group, new in figures.items()}


def _count(case: Case, dtype: str, work: Work, device: torch.device, measured: Measured) -> None:
    """Correctness, determinism, memory and operators of every implementation."""
    where = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.machine()
    group = f"torch {torch.__version__.partition('+')[0]}, {where}"
    for (name, mode), result in examine(work, device, peers=False).items():
        label = f"{case.name}/{name}/{dtype}/{mode}"
        if result.status in (ERROR, OOM):
            measured.troubles.append(f"{label}: {result.reason}")
            continue
        if result.reason:
            measured.absent[f"{case.name}/{name}/"] = result.reason
            continue
        call = mode_call(work, work.implementations[name], mode)
        if not _same_bits(call(), call()):
            measured.troubles.append(f"{label}: the same call gave other bits")
            continue
        for figure in COUNTS:
            if figure in result.figures:
                measured.put(group, f"{label}/{figure}", result.figures[figure])


def _jobs(case: Case, name: str, dtype: str, work: Work) -> list[Job]:
    return [Job(case.name, name, mode, dtype) for mode in work.modes]


def _take_ratios(
    jobs: list[Job],
    device: torch.device,
    measured: Measured,
    baseline: Figures,
    case_files: list[str],
    thorough: bool,
) -> None:
    """Time of compiled implementations over the peer's. What the baseline holds is taken until it is kept.

    That of a reference is not held: it is the time of PyTorch's operators, whose number is.
    """
    where = torch.cuda.get_device_name(device) if device.type == "cuda" else machine.processor_model()
    group = f"time on {where}, {machine.capability(device)}"
    held = baseline.get(group, {})
    label = {job: f"{job.case}/{job.implementation}/{job.dtype}/{job.mode}/time_ratio" for job in jobs}
    takes: dict[Job, list[float]] = {job: [] for job in jobs}
    waiting = jobs
    for _ in range(TAKES):
        for job, ratio in ratios.take(waiting, device, case_files).items():
            takes[job].append(float(f"{ratio:.4g}"))
        again = [job for job in waiting if label[job] in held or thorough]
        waiting = [job for job in again if not _holds(label[job], held.get(label[job], 0), takes[job][-1])]
        if not waiting:
            break
    for job, values in takes.items():
        measured.put(group, label[job], min(values) if label[job] in held else max(values))


def _read_resources(chosen: list[Case], measured: Measured, case_files: list[str]) -> None:
    """Registers, shared memory, spills and instructions of the kernels that the modules of the chosen cases tell of."""
    names = {case.build.__module__ for case in chosen}
    measured.rows, absent = compiled.resources([m for m in modules(case_files) if m.__name__ in names])
    measured.absent |= dict(line.split(": ", 1) for line in absent)
    for row in measured.rows:
        for figure, value in row.figures().items():
            measured.put(row.version, f"{row.kernel}/{row.target}/{figure}", value)


@contextlib.contextmanager
def _counting(jobs: list[Job], measured: Measured, case_files: list[str]) -> Iterator[Callable[[], None]]:
    """Count the instructions that irnet's native CPU code executes, where valgrind can, while the caller works.

    They are the same beside any other work. What is yielded waits for them.
    """
    counts: Callable[[], dict[Job, int]] = dict
    group = f"torch {torch.__version__.partition('+')[0]}"
    with contextlib.ExitStack() as stack:
        if jobs:
            try:
                counts = stack.enter_context(instructions.counting(jobs, case_files))
                group = f"{instructions.valgrind_version()}, {_compiler()}, {group}"
            except tools.ToolUnavailable as reason:
                measured.absent["instructions of C++ code"] = str(reason)

        def put() -> None:
            with Progress("counting instructions", hidden=not jobs):
                for job, number in counts().items():
                    name = f"{job.case}/{job.implementation}/{job.dtype}/{job.mode}/executed_instructions"
                    measured.put(group, name, number)

        yield put


def _compiler() -> str:
    """What compiled the native extension, or would."""
    module = extension.native()
    if module:
        return module.build_info()["compiler"]
    said = subprocess.run(["c++", "-dumpfullversion"], capture_output=True, text=True, check=True).stdout
    return f"c++ {said.strip()}"


def _same_bits(one: object, other: object) -> bool:
    """Whether two results, or the gradients of two backward passes, have the same bits."""
    pairs = zip(*((v,) if isinstance(v, torch.Tensor) else v for v in (one, other)), strict=True)
    return all(bits_equal(a, b) for a, b in pairs)
