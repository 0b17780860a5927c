"""A run: measures cases one after the other, appends the records, goes on after a stop. Judges nothing."""

import contextlib
import dataclasses
import datetime
import hashlib
import itertools
import json
import logging
import resource
import tempfile
import uuid
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch

from irnet.errors import InputError
from irnet.progress import Progress
from irnet_kernels.numerics import full_float32

from . import machine, records
from .case import DTYPES, Case
from .measure import Result, Settings, measure
from .records import ERROR, OK, OOM, Record
from .tables import significant

log = logging.getLogger("irnet")


class DeviceLost(Exception):
    """A kernel has left the GPU useless to this process. What was measured is written, and another process goes on."""


@dataclass(frozen=True)
class Group:
    """What is measured together: one case in one shape and dtype, all implementations and modes."""

    case: Case
    shape: dict[str, int]
    dtype: str
    swept: bool = False

    @property
    def key(self) -> tuple:
        return self.case.suite, self.case.name, tuple(sorted(self.shape.items())), self.dtype


def plan(
    cases: Iterable[Case], device: torch.device, sweep: Mapping[str, list[int]], dtypes: list[str] | None = None
) -> list[Group]:
    """The groups of a run: every case at its default shape, or at every combination of the sweep's values.

    sweep   {name: values}; a case whose shape lacks the name is left out, with a message
    dtypes  those to measure in place of each case's own
    Raises InputError where nothing is left.
    """
    groups, known = [], set()
    for case in cases:
        shape = dict(case.shapes[device.type])
        known |= set(shape)
        if absent := [name for name in sweep if name not in shape]:
            log.info("%s: left out, it has no %s", case.name, ", ".join(absent))
            continue
        for values in itertools.product(*sweep.values()):
            swept = shape | dict(zip(sweep, values, strict=True))
            groups += [Group(case, swept, dtype, bool(sweep)) for dtype in dtypes or case.dtypes[device.type]]
    if not groups:
        raise InputError("--sweep", f"no case has {', '.join(sweep)}", f"there are {', '.join(sorted(known))}")
    return groups


def parse_sweep(words: Iterable[str]) -> dict[str, list[int]]:
    """{name: values} of words such as regions=1,10,50."""
    sweep = {}
    for word in words:
        name, _, values = word.partition("=")
        try:
            sweep[name] = [int(value) for value in values.split(",")]
        except ValueError:
            raise InputError("--sweep", f"{word!r} is no NAME=NUMBERS", "write for example regions=1,10,50") from None
        if min(sweep[name]) < 0:
            raise InputError("--sweep", f"{word!r} holds a negative number", "sizes start at 0")
    return sweep


def run(
    groups: list[Group],
    output: Path,
    device: torch.device,
    settings: Settings,
    fresh: bool = False,
) -> list[Record]:
    """Measure the groups, append each to `output` as it is done, and return the run's records of these groups.

    Where the file's last run was to measure the same, of the same source on the same machine, and lacks some of the
    groups, it goes on; `fresh` starts a new one all the same.
    """
    facts = machine.facts(device)
    order = json.dumps([[group.key for group in groups], *dataclasses.astuple(settings)])
    digest = hashlib.sha256(order.encode()).hexdigest()[:12]
    earlier = _unfinished(output, groups, facts, digest) if not fresh else []
    if earlier:
        log.info("%s: going on with its last run", output)
    identity = earlier[0].run if earlier else uuid.uuid4().hex[:12]
    done = {_group_key(r) for r in earlier}
    missing = [group for group in groups if group.key not in done]
    warned = bool(missing) and machine.warn_if_loaded(device, facts)
    rates = {"copy": machine.copy_rate(device)} if missing else {}
    progress = Progress("measuring", len(groups), "case", done=len(groups) - len(missing), leave=True)
    limited = _limited_memory() if device.type == "cpu" else contextlib.nullcontext()
    with progress, limited, full_float32(), _fresh_compilations():
        for group in missing:
            if not progress.visible:
                log.info("%d/%d %s %s", groups.index(group) + 1, len(groups), group.case.name, group.dtype)
            if group.dtype not in rates:
                rates[group.dtype] = machine.matmul_rate(device, DTYPES[group.dtype])
            tick = lambda text, name=group.case.name: progress.note(f"{name}: {text}")  # noqa: E731
            lost = None
            try:
                results = measure(group.case, group.shape, group.dtype, device, settings, tick)
            except torch.AcceleratorError as error:
                lost = Result(False, ERROR, f"the device is lost: {str(error).splitlines()[0]}")
                results = {("reference", mode): lost for mode in settings.modes}
            now = facts | machine.condition(device)
            warned = warned or machine.warn_if_loaded(device, now)
            stamp = {"run": identity, "seed": settings.seed, "plan": digest, "machine": now}
            records.append(output, [record(group, *key, result, rates, stamp) for key, result in results.items()])
            if lost:
                raise DeviceLost(lost.reason)
            progress.update()
    return [r for r in records.read(output) if r.run == identity]


def record(
    group: Group, implementation: str, mode: str, result: Result, rates: Mapping[str, float], stamp: Mapping
) -> Record:
    """The record of one result. The limit is what would take longest at the rates measured in this run."""
    figures = dict(result.figures)
    bound = {}
    if result.status == OK:
        rate = {"copy": rates["copy"], "matmul": rates[group.dtype]}
        figures |= {"copy_rate": rate["copy"], "matmul_rate": rate["matmul"]}
        work = {"copy": figures.get("fewest_bytes"), "matmul": figures.get("fewest_flops")}
        least = {what: amount / rate[what] for what, amount in work.items() if amount}
        if least and "percentiles" in figures:
            limit = max(least, key=least.__getitem__)
            bound = {"limit": limit, "limit_fraction": least[limit] / figures["percentiles"]["50"]}
    return Record(
        time=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        suite=group.case.suite,
        case=group.case.name,
        implementation=implementation,
        peer=result.peer,
        mode=mode,
        dtype=group.dtype,
        shape=group.shape,
        swept=group.swept,
        status=result.status,
        reason=result.reason,
        **figures,
        **bound,
        **stamp,
    )


def text(measured: list[Record]) -> str:
    """The records as aligned lines for a terminal."""
    head = ["case", "implementation", "mode", "dtype", "median", "20%-80%", "of limit", "peak", "saved", "error/budget"]
    lines = [head]
    for r in measured:
        name = [_shaped(r, measured), r.implementation, r.mode, r.dtype]
        if r.status != OK:
            lines.append([*name, f"{r.status}: {r.reason}"])
            continue
        spread = f"{_ms(r.percentiles['20'])}-{_ms(r.percentiles['80'])}"
        of_limit = "" if r.limit_fraction is None else f"{100 * r.limit_fraction:.0f}% {r.limit}"
        judged = "" if r.error is None else f"{r.error:.1e}/{r.budget:.1e}"
        sizes = [_mib(r.peak_allocated_bytes), _mib(r.saved_bytes)]
        lines.append([*name, f"{_ms(r.median)} ms", spread, of_limit, *sizes, judged])
    full = [line for line in lines if len(line) == len(head)]
    widths = [max(len(line[i]) for line in full + [n[:4] for n in lines] if i < len(line)) for i in range(len(head))]
    return "\n".join("  ".join(c.ljust(w) for c, w in zip(line, widths, strict=False)).rstrip() for line in lines)


def failed(measured: Iterable[Record]) -> list[Record]:
    """The records of irnet's own implementations that are wrong or could not be measured."""
    return [r for r in measured if not r.peer and r.status in (ERROR, OOM)]


def _unfinished(output: Path, groups: list[Group], facts: dict, digest: str) -> list[Record]:
    """The records of the file's last run if it has this plan, source and machine, and lacks some of the groups."""
    present = records.last_run(records.read(output)) if output.exists() and output.stat().st_size else []
    if not present:
        return []
    old = present[0].machine
    if machine.same(old, facts) or any(old.get(name) != facts[name] for name in ("source", "versions")):
        return []
    if present[0].plan != digest:
        return []
    done = {_group_key(r) for r in present}
    return present if any(group.key not in done for group in groups) else []


def _group_key(r: Record) -> tuple:
    return r.suite, r.case, tuple(sorted(r.shape.items())), r.dtype


@contextlib.contextmanager
def _limited_memory() -> Iterator[None]:
    """An allocation beyond what the machine has then fails as such, and is reported; else the kernel kills the run."""
    free, held = _kibibytes("/proc/meminfo", "MemAvailable"), _kibibytes("/proc/self/status", "VmData")
    soft, hard = resource.getrlimit(resource.RLIMIT_DATA)
    limit = (held + free * 9 // 10) * 1024
    limit = min([limit, *(present for present in (soft, hard) if present != resource.RLIM_INFINITY)])
    resource.setrlimit(resource.RLIMIT_DATA, (limit, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_DATA, (soft, hard))


@contextlib.contextmanager
def _fresh_compilations() -> Iterator[None]:
    """What torch.compile makes is made anew in every run: compile times are whole, and no damaged file is met again."""
    cache = tempfile.TemporaryDirectory(prefix="irnet-bench-", ignore_cleanup_errors=True)
    with cache as folder, machine.variable("TORCHINDUCTOR_CACHE_DIR", folder):
        yield


def _kibibytes(path: str, name: str) -> int:
    return next(int(line.split()[1]) for line in Path(path).read_text().splitlines() if line.startswith(name))


def _shaped(r: Record, measured: list[Record]) -> str:
    """The case's name, with those numbers of its shape that vary among the records."""
    shapes = [other.shape for other in measured if other.case == r.case]
    varying = [f"{n}={v}" for n, v in r.shape.items() if any(shape.get(n) != v for shape in shapes)]
    return " ".join([r.case, *varying])


def _ms(seconds: float) -> str:
    return significant(1e3 * seconds)


def _mib(size: int | None) -> str:
    return "" if size is None else f"{size / 2**20:.1f} MiB"
