"""`irnet bench compare A B`: what has changed between two files of records, and whether that fails. Measures nothing.

- Compared is the latest record of every key (`Record.key`, and the device) in each file, whatever its status: a run may
  have been continued, and suites may have been measured one after the other. To see what is missing, compare files
  that began empty; records of several commits in one file are pointed out.
- Time: the ratio B/A of the medians. The interval of a median is distribution-free; that of the ratio is
  [low of B / high of A, high of B / low of A]. It fails beyond the limit, slower or faster, if the two medians'
  intervals are disjoint: an unexpected speed-up often means that work was skipped.
- Memory: bytes at the peak, allocated in all, and saved, beyond the limit, larger or smaller. Reserved bytes are only
  listed: they depend on what else the allocator holds.
- Correctness: an error of B beyond its budget; a record that was ok in A and is not in B, or is missing there.
- Beyond a limit means larger/smaller > 1 + limit, so that exchanging A and B changes no verdict on time and memory.
- Peers are not this code: whatever happens to them is listed and fails nothing.
"""

import argparse
import functools
import math
import statistics
from dataclasses import dataclass, field

from irnet.errors import InputError

from . import machine, records
from .records import Record

MEMORY = ("peak_allocated_bytes", "allocated_bytes", "saved_bytes", "peak_reserved_bytes")
REPORTED_ONLY = ("peak_reserved_bytes",)


@dataclass(frozen=True)
class Finding:
    """One thing to tell about a row."""

    what: str  # time, error, status, missing, new, or a field of MEMORY
    word: str  # slower, faster, unclear, larger, smaller, ...
    detail: str
    fails: bool = False


@dataclass(frozen=True)
class Ratio:
    """B/A with its interval."""

    value: float
    low: float
    high: float


@dataclass
class Row:
    """One key; `a` or `b` is None where its file has no such record."""

    a: Record | None
    b: Record | None
    time: Ratio | None = None
    memory: dict[str, float] = field(default_factory=dict)  # B/A of each field of MEMORY that both have
    findings: list[Finding] = field(default_factory=list)

    @property
    def record(self) -> Record:
        return self.b or self.a

    @property
    def compared(self) -> bool:
        return bool(self.a and self.b and self.a.status == self.b.status == "ok")

    @property
    def fails(self) -> bool:
        return any(f.fails for f in self.findings)

    @property
    def verdict(self) -> str:
        words = ", ".join(f.word for f in self.findings) or ("same" if self.compared else self.record.status)
        return f"FAIL {words}" if self.fails else words


@dataclass
class Comparison:
    rows: list[Row]
    notes: list[str]  # what was compared, and what to know before believing it

    @property
    def fails(self) -> bool:
        return any(row.fails for row in self.rows)


def compare(
    a: list[Record],
    b: list[Record],
    *,
    time_limit: float = 0.07,
    memory_limit: float = 0.01,
    different_machines: bool = False,
) -> Comparison:
    """Compare two lists of records, in the order of their files, by the rules at the head of this module.

    time_limit, memory_limit  the largest change that passes, as a fraction
    different_machines        compare although device, processor, capability or threads differ
    Raises InputError where machines differ and may not, and where nothing is measured on both sides.
    """
    for name, records_ in (("A", a), ("B", b)):
        if not records_:
            raise InputError(name, "holds no record", "measure first")
    # Records of other devices are of other cases, unless it is just the devices that are to be compared.
    by_device = not different_machines or bool(_values(a, "device") & _values(b, "device"))
    chosen_a, chosen_b = _latest(a, by_device), _latest(b, by_device)
    pairs = [(chosen_a.get(key), chosen_b.get(key)) for key in chosen_a | chosen_b]
    if not different_machines:
        both = [pair for pair in pairs if all(pair)]
        for one, other in both or [(a[-1], b[-1])]:
            _same_machine(one, other)
    rows = [_row(one, other, time_limit, memory_limit) for one, other in pairs]
    result = Comparison(rows, _notes(list(chosen_a.values()), list(chosen_b.values()), rows))
    if not result.fails and not any(row.compared for row in rows):
        raise InputError("A and B", "have no measured record in common", "measure the same cases for both")
    return result


def median_interval(samples: list[float]) -> tuple[float, float]:
    """An interval that covers the true median with a probability of 95% or a little more, whatever the distribution.

    Two order statistics, by the binomial distribution. Fewer than 6 samples cannot give 95%: their whole range.
    """
    ordered = sorted(samples)
    skip = _skipped(len(ordered))
    return ordered[skip], ordered[-1 - skip]


def text(comparison: Comparison) -> str:
    """The comparison for terminals: a line per key, then the findings in detail, the failures last."""
    from tabulate import tabulate

    every = [row.record for row in comparison.rows]
    table = [["case", "implementation", "mode", "dtype", "", "A", "B", "B/A", "peak memory", ""]]
    for row in comparison.rows:
        r, memory = row.record, row.memory.get("peak_allocated_bytes")
        ratio = "-" if row.time is None else f"{row.time.value:.3f} {_brackets(row.time)}"
        names = [r.case, r.implementation, r.mode, r.dtype, _varying(r, every)]
        table.append([*names, *_times(row), ratio, "-" if memory is None else f"{memory:.3f}", row.verdict])
    sides = ["left"] * 5 + ["right"] * 4 + ["left"]
    drawn = tabulate(table, tablefmt="plain", disable_numparse=True, colalign=sides)
    findings = [(row, finding) for row in comparison.rows for finding in row.findings]
    findings.sort(key=lambda one: one[1].fails)
    lines = [*comparison.notes, "", drawn, ""]
    lines += [f"{'FAIL' if f.fails else 'note'}  {_name(row.record)}: {f.detail}" for row, f in findings]
    missing, new = (sum(f.what == what for _, f in findings) for what in ("missing", "new"))
    compared, failed = (sum(getattr(row, name) for row in comparison.rows) for name in ("compared", "fails"))
    lines.append(f"{compared} compared, {missing} missing in B, {new} new in B: {failed} FAIL")
    return "\n".join(lines)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `run`."""
    parser.add_argument("a", metavar="A", help="JSONL file of records, before; of each key the latest counts")
    parser.add_argument("b", metavar="B", help="JSONL file of records, after")
    parser.add_argument("--different-machines", action="store_true", help="compare although the machines differ")
    parser.add_argument("--time-limit", type=float, default=0.07, metavar="FRACTION", help="more time than this fails")
    parser.add_argument(
        "--memory-limit", type=float, default=0.01, metavar="FRACTION", help="more memory than this fails"
    )


def run(options: argparse.Namespace) -> int:
    """Print the comparison of two files. Returns 1 where something fails, else 0."""
    for name in ("time_limit", "memory_limit"):
        if not getattr(options, name) >= 0:  # NaN too
            option = "--" + name.replace("_", "-")
            raise InputError(option, f"{getattr(options, name)} is no limit", "give a fraction such as 0.07")
    files = []
    for path in (options.a, options.b):
        files.append(records.read(path))
        if not files[-1]:
            raise InputError(path, "holds no record", "name a file that `irnet bench` wrote")
    comparison = compare(
        *files,
        time_limit=options.time_limit,
        memory_limit=options.memory_limit,
        different_machines=options.different_machines,
    )
    print(f"A  {options.a}\nB  {options.b}\n\n{text(comparison)}")
    return int(comparison.fails)


def _values(some: list[Record], fact: str) -> set:
    return {r.machine.get(fact) for r in some}


def _latest(some: list[Record], by_device: bool) -> dict[tuple, Record]:
    return {(*r.key, r.machine.get("device") if by_device else None): r for r in some}


def _same_machine(a: Record, b: Record) -> None:
    differ = [f"{f} {a.machine.get(f)} and {b.machine.get(f)}" for f in machine.same(a.machine, b.machine)]
    if differ:
        trouble = f"are of different machines: {', '.join(differ)}"
        raise InputError("A and B", trouble, "measure both on one machine, or give --different-machines")


def _row(a: Record | None, b: Record | None, time_limit: float, memory_limit: float) -> Row:
    row = Row(a, b)
    ours = not row.record.peer
    findings = row.findings
    if b is None:
        detail = f"missing in B, {_status(a)} in A"
        findings.append(Finding("missing", "missing in B", detail, ours and a.status == "ok"))
    elif a is None:
        findings.append(Finding("new", "new in B", f"new in B, {_status(b)}"))
    elif a.status != b.status:
        detail = f"{_status(a)} in A, {_status(b)} in B"
        findings.append(Finding("status", f"{a.status} -> {b.status}", detail, ours and a.status == "ok"))
    elif a.status == "ok":
        _compare_time(row, time_limit, ours)
        _compare_memory(row, memory_limit, ours)
        _one_sided(row, "error")
    if b and b.error is not None and b.budget is not None and not b.error <= b.budget:
        findings.append(Finding("error", "wrong", f"error {b.error:.3g} of B beyond its budget {b.budget:.3g}", ours))
    return row


def _compare_time(row: Row, limit: float, ours: bool) -> None:
    a, b = row.a, row.b
    if not (a.samples and b.samples):
        _one_sided(row, "samples")
        return
    (low_a, high_a), (low_b, high_b) = (_checked_interval(r) for r in (a, b))
    middle_a, middle_b = statistics.median(a.samples), statistics.median(b.samples)
    row.time = Ratio(middle_b / middle_a, low_b / high_a, high_b / low_a)
    if not _beyond(middle_a, middle_b, limit):
        return
    detail = f"{row.time.value:.3f} {_brackets(row.time)} times the time, {' -> '.join(_times(row))}"
    if min(len(a.samples), len(b.samples)) < 6:
        detail += f", from only {len(a.samples)} and {len(b.samples)} samples"
    if a.clock != b.clock:
        detail += f", but clock {a.clock} -> {b.clock}"
    if low_b > high_a or high_b < low_a:
        word = "slower" if middle_b > middle_a else "faster"
        row.findings.append(Finding("time", word, f"{word}: {detail}", ours))
    else:
        row.findings.append(Finding("time", "unclear", f"too noisy to tell: {detail}"))


def _compare_memory(row: Row, limit: float, ours: bool) -> None:
    for name in MEMORY:
        before, after = getattr(row.a, name), getattr(row.b, name)
        if before is None or after is None:
            _one_sided(row, name)
            continue
        row.memory[name] = after / before if before else 1.0 if after == before else math.inf
        if _beyond(before, after, limit):
            word = "larger" if after > before else "smaller"
            detail = f"{name} {word}: {before:,} -> {after:,}"
            short = name.removesuffix("_bytes").replace("_", " ")
            row.findings.append(Finding(name, f"{short} {word}", detail, ours and name not in REPORTED_ONLY))


def _one_sided(row: Row, name: str) -> None:
    """Tell of a field that only one of the two records has."""
    lacking = [side for side, r in (("A", row.a), ("B", row.b)) if getattr(r, name) in (None, [])]
    if len(lacking) == 1:
        what = "time" if name == "samples" else name
        words = f"{what} not measured in {lacking[0]}"
        row.findings.append(Finding(what, words, words))


def _beyond(a: float, b: float, limit: float) -> bool:
    return max(a, b) > (1 + limit) * min(a, b)


def _checked_interval(record: Record) -> tuple[float, float]:
    if not all(0 < s < math.inf for s in record.samples):
        raise InputError(record.label.strip(), "has samples that are no times", "measure it again")
    return median_interval(record.samples)


@functools.cache
def _skipped(count: int) -> int:
    """How many of `count` ordered samples to leave out at either end: the most that still gives 95%."""
    from scipy.stats import binom

    # [x(k), x(n+1-k)] misses the median with the probability 2 P(Binomial(n, 1/2) < k).
    return max(int(binom.ppf(0.025, count, 0.5)) - 1, 0)


def _notes(a: list[Record], b: list[Record], rows: list[Row]) -> list[str]:
    notes = [f"{name}: {_about(some)}" for name, some in (("A", a), ("B", b))]
    names = sorted({name for r in (*a, *b) for name in r.machine.get("versions", {})})
    for name in names:
        before, after = (sorted({str(r.machine.get("versions", {}).get(name)) for r in some}) for some in (a, b))
        if before != after:
            notes.append(f"{name} {' and '.join(before)} in A, {' and '.join(after)} in B")
    peers = [row for row in rows if row.record.peer and row.time]
    moved = sum(any(f.word in ("slower", "faster") for f in row.findings) for row in peers)
    if moved:
        notes.append(
            f"{moved} of {len(peers)} peers took another time. They are not irnet's code: the machine has drifted, or"
            " a library has changed. Measure A and B again, one right after the other"
        )
    return notes


def _about(some: list[Record]) -> str:
    """Where records come from; more than one place is worth a look."""
    sources = {}
    for r in some:
        facts = [f"{f} {r.machine[f]}" for f in machine.IDENTITY if r.machine.get(f) is not None]
        commit = str(r.machine.get("commit") or "unknown")[:12]
        sources[", ".join([*facts, f"commit {commit}" + (" with changes" if r.machine.get("dirty") else "")])] = None
    return f"{len(some)} records; " + "; and ".join(sources)


def _status(record: Record) -> str:
    return f"{record.status} ({record.reason})" if record.reason else record.status


def _varying(record: Record, some: list[Record]) -> str:
    """What may tell rows of one case apart, beyond the columns that every row has: what is not the same in all."""

    def facts(r: Record) -> dict:
        return {"device": r.machine.get("device"), **r.shape, "seed": r.seed}

    others = [facts(r) for r in some if r.case == record.case]
    mine = facts(record).items()
    return " ".join(f"{name}={value}" for name, value in mine if any(o.get(name, value) != value for o in others))


def _name(record: Record) -> str:
    return record.label.strip() + (" (peer)" if record.peer else "")


def _times(row: Row) -> list[str]:
    """The medians of A and B in one unit."""
    seconds = [statistics.median(r.samples) if r and r.samples else None for r in (row.a, row.b)]
    most = max((s for s in seconds if s), default=1)
    scale, unit = next(((s, u) for s, u in ((1, "s"), (1e-3, "ms"), (1e-6, "us")) if most >= s), (1e-9, "ns"))
    return ["-" if s is None else f"{s / scale:.4g} {unit}" for s in seconds]


def _brackets(ratio: Ratio) -> str:
    return f"[{ratio.low:.3f}, {ratio.high:.3f}]"
