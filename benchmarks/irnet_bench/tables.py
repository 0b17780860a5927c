"""Numbers to tables: records as Markdown, and the README's block between its markers. Draws and measures nothing.

A figure stands only where a record has it. Where none does, a word says why: skipped, oom, error, wrong (the result is
outside its error budget, so its speed means nothing), or a dash where nobody asked.
"""

import math
import os
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from irnet import files
from irnet.errors import InputError
from irnet_kernels.dispatch import IMPLEMENTATIONS

from .records import STATUSES, Record, read

BEGIN, END = "<!-- benchmarks: begin -->", "<!-- benchmarks: end -->"
NONE = "-"
OTHER_RUN = "not in one run"
MODIFIED = "measured from a modified tree"
NOTHING = "Nothing has been measured."


@dataclass(frozen=True)
class Device:
    """What was measured on one machine: its name and, of every key, the latest record."""

    name: str
    records: list[Record]


@dataclass(frozen=True)
class Table:
    """Rows of text. The first `names` columns name the row, the others hold figures or the words in their place."""

    title: str
    caption: str
    head: list[str]
    names: int
    rows: list[list[str]]

    def markdown(self) -> str:
        ends = ["---"] * self.names + ["---:"] * (len(self.head) - self.names)
        lines = [[plain(cell) for cell in row] for row in (self.head, *self.rows)]
        lines.insert(1, ends)
        return "\n".join(f"| {' | '.join(line)} |" for line in lines) + f"\n\n{plain(self.caption)}\n"


# Per case and dtype: implementation -> mode -> record.
Contests = dict[tuple[str, str], dict[str, dict[str, Record]]]


# ------------------------------------------------------------------------------------------------------------ records


def latest(records: Iterable[Record]) -> list[Record]:
    """Of every key and device the last record, in the order in which they first appear; those of sweeps apart."""
    return list({(r.key, r.swept, r.machine.get("device")): r for r in records}.values())


def devices(*measured: list[Record]) -> list[Device]:
    """The records of one file each, by the machine they come from; where files overlap, the later one counts."""
    found: dict[str, list[Record]] = {}
    for records in measured:
        for record in latest(records):
            found.setdefault(device_name(record.machine), []).append(record)
    return [Device(name, latest(records)) for name, records in found.items()]


def device_name(machine: dict) -> str:
    """A GPU's name, or a CPU's with its number of threads, on which everything there depends."""
    device = machine.get("device")
    if device not in ("cpu", None):
        return str(device)
    processor, threads = machine.get("processor"), machine.get("threads")
    name = f"CPU {processor}" if processor else "CPU" if device else "unknown device"
    return name if threads is None else f"{name}, {threads} thread{'s' * (threads != 1)}"


def measured_on(records: list[Record]) -> str:
    """One sentence: the machine, the version of PyTorch, the commit, the day, and whether the tree was modified."""
    facts = [device_name(r.machine) for r in records]
    parts = [_each(facts)]
    parts += [f"torch {_each((r.machine.get('versions') or {}).get('torch') for r in records) or 'of unknown version'}"]
    parts += [f"commit {_each(str(r.machine.get('commit') or 'unknown')[:10] for r in records)}"]
    days = sorted({r.time[:10] for r in records})
    parts += [days[0] if len(days) == 1 else f"{days[0]} to {days[-1]}"]
    modified = f", {MODIFIED}" if any(r.machine.get("dirty") for r in records) else ""
    return f"Measured on {', '.join(parts)}{modified}."


def verdict(record: Record) -> str:
    """ok, or why the record has no speed to show."""
    if record.status == "ok" and record.error is not None and record.budget is not None:
        return "ok" if record.error <= record.budget else "wrong"
    return record.status


def contests(records: list[Record]) -> Contests:
    """The records at their cases' own shapes, not at those of a sweep. Of several such shapes or seeds the last one."""
    own = {r.case: _shape(r) for r in records if not r.swept}
    result: Contests = {}
    for r in records:
        if not r.swept and _shape(r) == own[r.case]:
            result.setdefault((r.case, r.dtype), {}).setdefault(r.implementation, {})[r.mode] = r
    return result


def fullest(modes: Iterable[str]) -> str:
    """The mode that says most about a case: a whole step where there is one, else the forward pass."""
    return min(modes, key=lambda mode: {"step": 0, "forward": 1}.get(mode, 2))


def modes_of(contest: dict[str, dict[str, Record]]) -> list[str]:
    return list(dict.fromkeys(mode for by_mode in contest.values() for mode in by_mode))


def is_peer(by_mode: dict[str, Record]) -> bool:
    return any(r.peer for r in by_mode.values())


def chosen(contest: dict[str, dict[str, Record]]) -> str | None:
    """irnet's implementation in a contest that peers are compared with: the one that impl="auto" takes first.

    Where names say nothing of that order (a model's variants), it is the fastest; one that did not run comes last.
    """
    mode = fullest(modes_of(contest))

    def rank(name: str) -> tuple:
        record = contest[name].get(mode)
        ran = record is not None and verdict(record) == "ok" and record.median is not None
        order = ("auto", *IMPLEMENTATIONS)  # then ways to run a model, such as grad checkpointing
        return not ran, order.index(name) if name in order else len(order), record.median if ran else 0.0

    return min((name for name, by_mode in contest.items() if not is_peer(by_mode)), key=rank, default=None)


# -------------------------------------------------------------------------------------------------------------- cells


def significant(value: float, digits: int = 3) -> str:
    """A number with so many significant digits and no exponent."""
    value = float(f"{value:.{digits - 1}e}")
    decimals = max(0, digits - 1 - math.floor(math.log10(abs(value)))) if value else 0
    return f"{value:.{decimals}f}"


def figure(record: Record | None, text: Callable[[Record], str | None]) -> str:
    """What `text` makes of a record, or the word that stands in its place."""
    if record is None:
        return NONE
    word = verdict(record)
    return (text(record) or NONE) if word == "ok" else word


def milliseconds(record: Record) -> str | None:
    return None if record.median is None else significant(1e3 * record.median)


def mebibytes(value: float | None) -> str | None:
    return None if value is None else significant(value / 2**20)


def of_limit(record: Record) -> str | None:
    """The share of the limit that was measured in the same run."""
    if record.limit_fraction is None:
        return None
    return f"{significant(100 * record.limit_fraction, 2)} % of {record.limit or 'the limit'}"


def ratio(
    ours: Record | None, theirs: Record | None, value: Callable[[Record], float | None], words: tuple[str, str]
) -> str:
    """How much smaller our value is than theirs: "12.3 x less". `words` are those for smaller and larger."""
    for record, owner in ((theirs, ""), (ours, "irnet: ")):
        if record is None:
            return NONE
        if verdict(record) != "ok":
            return owner + verdict(record)
    if ours.run != theirs.run:
        return OTHER_RUN
    a, b = value(ours), value(theirs)
    if a is None or b is None:
        return NONE
    if a == b:
        return "equal"
    if a == 0 or b == 0:
        return "irnet: none" if a == 0 else "peer: none"
    times = significant(max(a / b, b / a))
    return "equal" if times == "1.00" else f"{times} x {words[a > b]}"


def time_ratio(ours: Record | None, theirs: Record | None) -> str:
    """The ratio of the medians; "≈" where the bands from the 20th to the 80th percentile overlap."""
    text = ratio(ours, theirs, lambda r: r.median, ("faster", "slower"))
    if " x " not in text:
        return text
    a, b = ours.percentiles, theirs.percentiles
    return text if a["80"] < b["20"] or b["80"] < a["20"] else f"≈ {text}"


def memory_ratio(ours: Record | None, theirs: Record | None) -> str:
    return ratio(ours, theirs, lambda r: r.peak_allocated_bytes, ("less", "more"))


# ------------------------------------------------------------------------------------------------------------- tables


def operators(device: Device) -> Table:
    """Every implementation of every operator at its default shape."""
    records = [r for r in device.records if r.suite == "kernels"]
    found, rows = contests(records), []
    for (case, dtype), contest in found.items():
        mode = fullest(modes_of(contest))
        for name, by_mode in contest.items():
            full = by_mode.get(mode)
            times = [figure(by_mode.get(m), milliseconds) for m in ("forward", "backward", "step")]
            peak = figure(full, lambda r: mebibytes(r.peak_allocated_bytes))
            saved = figure(full, lambda r: mebibytes(r.saved_bytes))
            rows.append([case, dtype, _who(name, by_mode), *times, figure(full, of_limit), peak, saved])
    head = ["operator", "dtype", "implementation", "forward, ms", "backward, ms", "step, ms", "of the limit"]
    head += ["peak, MiB", "saved, MiB"]
    caption = (
        "Medians. A step is forward and backward; the limit and the memory are those of the step, or of the forward "
        "pass where there is no other. Peak is above what was there before the call; saved is kept for the backward "
        f"pass beyond the inputs. {_shapes(found)}"
    )
    return _table("Operators", caption, head, 3, rows, records)


def ratios(device: Device) -> Table:
    """What impl="auto" takes against every peer, at the default shape and in the same run."""
    rows, used = [], []
    left_out: dict[str, dict[str, list[str]]] = {}
    for (case, dtype), contest in contests(device.records).items():
        ours = chosen(contest)
        mode, mine = fullest(modes_of(contest)), contest.get(ours, {})
        for name, by_mode in contest.items():
            if not is_peer(by_mode):
                continue
            times = [time_ratio(mine.get(m), by_mode.get(m)) for m in ("forward", "backward", "step")]
            cells = [*times, memory_ratio(mine.get(mode), by_mode.get(mode))]
            reason = _no_figure(cells)
            if reason:
                left_out.setdefault(reason, {}).setdefault(name, []).append(f"{case} {dtype}")
                continue
            used += [*mine.values(), *by_mode.values()]
            rows.append([case, dtype, ours or NONE, name, *cells])
    head = ["case", "dtype", "irnet", "peer", "forward", "backward", "step", "memory"]
    caption = (
        "irnet against each peer, measured in the same run: 2.00 x faster is half the peer's median time, 2.00 x less "
        "half its peak memory. ≈: the bands from the 20th to the 80th percentile overlap."
    )
    for reason, names in left_out.items():
        told = "; ".join(f"{name} of {_each(cases, ', ')}" for name, cases in names.items())
        caption += f" Left out ({reason}): {told}."
    return _table("Against peers", caption, head, 4, rows, used)


def _no_figure(cells: list[str]) -> str | None:
    """Why a row of ratios holds no figure at all, or None where it holds one or tells of a failure of irnet's own."""
    words = [cell for cell in cells if cell != NONE]
    if any(word not in (OTHER_RUN, "wrong", *STATUSES) for word in words):
        return None
    return "measured in another run" if OTHER_RUN in words else _each(words, ", ") or "no figure"


def throughput(device: Device) -> Table:
    """The model, training and data at their default shapes."""
    records = [r for r in device.records if r.suite != "kernels"]
    found, rows = contests(records), []
    for (case, dtype), contest in found.items():
        for name, by_mode in contest.items():
            for mode, r in by_mode.items():
                if mode == "backward" and "step" in by_mode:
                    continue
                cells = [figure(r, milliseconds), figure(r, _rate), figure(r, of_limit)]
                cells += [figure(r, lambda r: mebibytes(r.peak_allocated_bytes))]
                rows.append([case, dtype, _who(name, by_mode), mode, *cells])
    head = ["case", "dtype", "implementation", "mode", "time, ms", "throughput", "of the limit", "peak, MiB"]
    caption = f"Medians; peak is above what was there before the call. {_shapes(found)}"
    return _table("Model, training and data", caption, head, 4, rows, records)


@dataclass(frozen=True)
class Sweep:
    """One case over the values of one number of its shape: implementation -> value -> record."""

    case: str
    dtype: str
    mode: str
    rest: str
    values: list[int]
    lines: dict[str, dict[int, Record]]  # of two values or more
    single: list[str]  # implementations that were measured at one value only


def sweeps(device: Device, name: str) -> list[Sweep]:
    """The cases that were measured for two values of `name` or more, all else equal, each in its fullest mode."""
    groups: dict[tuple, dict[str, dict[int, Record]]] = {}
    modes: dict[str, set[str]] = {}
    for r in device.records:
        if name in r.shape:
            rest = _words({k: v for k, v in _shape(r) if k != name})
            group = groups.setdefault((r.case, r.dtype, r.mode, rest), {})
            group.setdefault(r.implementation, {})[r.shape[name]] = r
            modes.setdefault(r.case, set()).add(r.mode)
    found = []
    for (case, dtype, mode, rest), lines in groups.items():
        single = [implementation for implementation, line in lines.items() if len(line) < 2]
        lines = {implementation: line for implementation, line in lines.items() if len(line) > 1}
        values = sorted({value for line in lines.values() for value in line})
        if lines and mode == fullest(modes[case]):
            found.append(Sweep(case, dtype, mode, rest, values, lines, single))
    return found


def swept(device: Device, name: str, title: str, text: Callable[[Record], str | None]) -> Table:
    """The sweeps over `name` as one table, a row per implementation."""
    rows, used = [], []
    found = sweeps(device, name)
    columns = sorted({value for sweep in found for value in sweep.values})
    for sweep in found:
        twice = [(other.case, other.dtype) for other in found].count((sweep.case, sweep.dtype)) > 1
        case = f"{sweep.case} {sweep.rest}" if twice else sweep.case
        for implementation, line in sweep.lines.items():
            cells = [figure(line.get(value), text) for value in columns]
            rows.append([case, sweep.dtype, _who(implementation, line), *cells])
            used += line.values()
    head = ["case", "dtype", "implementation", *(f"{name}={value}" for value in columns)]
    caption = "Of the step, or of the forward pass where there is no step."
    single = "; ".join(f"{_each(sweep.single, ', ')} of {sweep.case}" for sweep in found if sweep.single)
    if single:
        caption += f" Left out (measured at one value only): {single}."
    return _table(title, caption, head, 3, rows, used)


def memory_by_images(device: Device) -> Table:
    title = "Memory against batch, peak in MiB"
    return swept(device, "images", title, lambda r: mebibytes(r.peak_allocated_bytes))


def time_by_regions(device: Device) -> Table:
    return swept(device, "regions", "Time against regions, median in ms", milliseconds)


def correctness(device: Device) -> Table:
    """The largest error that was met, over all shapes, against what it may be."""
    worst: dict[tuple, dict[bool, Record]] = {}
    used = [r for r in device.records if r.error is not None and r.budget is not None]
    for r in used:
        of = worst.setdefault((r.case, r.dtype, _who(r.implementation, {r.mode: r})), {})
        forward = r.mode == "forward"
        if forward not in of or _share(r) > _share(of[forward]):
            of[forward] = r
    rows = [[*names, *(_judged(of.get(forward)) for forward in (True, False))] for names, of in worst.items()]
    head = ["case", "dtype", "implementation", "result", "gradients"]
    caption = "Largest absolute error against float64 over all shapes, and the budget that it must keep within."
    return _table("Correctness", caption, head, 3, rows, used)


def missing(device: Device) -> Table:
    """Whatever was not measured, and why."""
    groups: dict[tuple, list[Record]] = {}
    for r in device.records:
        if verdict(r) != "ok":
            reason = r.reason or ("the result is outside its error budget" if verdict(r) == "wrong" else NONE)
            groups.setdefault((_who(r.implementation, {r.mode: r}), verdict(r), reason), []).append(r)
    rows = []
    for (name, word, reason), records in groups.items():
        shapes = list(dict.fromkeys(_words(r.shape) for r in records))
        shape = "; ".join(shapes) if len(shapes) < 3 else f"{len(shapes)} shapes"
        where = [_each((getattr(r, what) for r in records), ", ") for what in ("case", "dtype", "mode")]
        rows.append([name, word, *where, shape or NONE, reason])
    head = ["implementation", "status", "cases", "dtypes", "modes", "shapes", "reason"]
    used = [r for records in groups.values() for r in records]
    return _table("Not measured", "oom: out of memory.", head, 7, rows, used)


def summary(device: Device) -> Table:
    """The operators in short: what impl="auto" takes and how it stands against the peers."""
    records = [r for r in device.records if r.suite == "kernels"]
    found, rows = contests(records), []
    for (case, dtype), contest in found.items():
        ours = chosen(contest)
        mode, mine = fullest(modes_of(contest)), contest.get(ours, {})
        peers = {name: by_mode.get(mode) for name, by_mode in contest.items() if is_peer(by_mode)}
        faster = {name: time_ratio(mine.get(mode), theirs).removesuffix(" faster") for name, theirs in peers.items()}
        against = "; ".join(f"{name} {text}" for name, text in faster.items() if text != OTHER_RUN)
        times = [figure(mine.get(m), milliseconds) for m in ("forward", "step")]
        peak = figure(mine.get(mode), lambda r: mebibytes(r.peak_allocated_bytes))
        rows.append([case, dtype, ours or NONE, *times, peak, against or NONE])
    head = ["operator", "dtype", "irnet", "forward, ms", "step, ms", "peak, MiB", "step: faster than peers by"]
    caption = (
        'irnet: the implementation that impl="auto" takes. Medians; a step is forward and backward, and without '
        "gradients the forward pass is compared. Peak is above what was there before the call. "
        f"≈: the bands from the 20th to the 80th percentile overlap. {_shapes(found)}"
    )
    return _table(f"Operators, {device.name}", caption, head, 3, rows, records)


TABLES = (operators, ratios, throughput, memory_by_images, time_by_regions, correctness, missing)


# ------------------------------------------------------------------------------------------------------------- README


def readme_block(found: list[Device], folder: str = "") -> str:
    """What stands between the README's markers: a short table per device, and where the rest is.

    folder  of the results, as the README's reader reaches it
    """
    tables = [table for table in map(summary, found) if table.rows]
    parts = [f"**{plain(table.title)}**\n\n{table.markdown()}" for table in tables] or [f"{NOTHING}\n"]
    if folder:
        parts.append(f"All records and tables: [{plain(folder)}](<{folder}>).\n")
    return "\n".join(parts)


def block_of(readme: str | os.PathLike, paths: list[str | os.PathLike]) -> str:
    """The block that files of records give a README."""
    folder = os.path.relpath(Path(paths[0]).resolve().parent, Path(readme).resolve().parent)
    return readme_block(devices(*map(read, paths)), Path(folder).as_posix())


def write_readme(path: str | os.PathLike, block: str) -> None:
    """Put `block` between the markers of a README; everything else in it stays, byte by byte.

    Raises InputError where the two markers are not there once each, in their order, on lines of their own.
    """
    before, _, after = _split(path)
    files.write(path, before + _framed(block) + after)


def is_current(readme: str | os.PathLike, paths: list[str | os.PathLike]) -> bool:
    """Whether what stands between the README's markers is what the records give; InputError where there are none."""
    return _split(readme)[1] == _framed(block_of(readme, paths))


def text_of(path: str | os.PathLike) -> str:
    """A file's text with its line ends as they are."""
    try:
        return Path(path).read_bytes().decode()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(path, f"cannot be read ({error})", "give a text file") from error


def _framed(block: str) -> str:
    return f"\n\n{block.strip()}\n\n"


def _split(path: str | os.PathLike) -> tuple[str, str, str]:
    """A README up to the end of the first marker, up to the second marker, and the rest."""
    text = text_of(path)
    begins, ends = ([m.span() for m in re.finditer(f"^{re.escape(s)}$", text, re.MULTILINE)] for s in (BEGIN, END))
    if len(begins) != 1 or len(ends) != 1 or ends[0][0] < begins[0][1]:
        trouble = f"has {len(begins)} lines {BEGIN} and {len(ends)} lines {END}"
        if len(begins) == len(ends) == 1:
            trouble = f"has {END} before {BEGIN}"
        raise InputError(path, trouble, "put each on a line of its own, once and in this order")
    return text[: begins[0][1]], text[begins[0][1] : ends[0][0]], text[ends[0][0] :]


# ------------------------------------------------------------------------------------------------------------- helpers


def _table(title: str, caption: str, head: list[str], names: int, rows: list, records: list[Record]) -> Table:
    return Table(title, f"{caption} {measured_on(records)}" if records else caption, head, names, rows)


def _shapes(found: Contests) -> str:
    """One sentence: which cases were measured at which shape."""
    cases: dict[str, dict[str, None]] = {}
    for (case, _), contest in found.items():
        shape = next(r.shape for by_mode in contest.values() for r in by_mode.values())
        cases.setdefault(_words(shape), {})[case] = None
    return "Shapes: " + "; ".join(f"{_each(names, ', ')} at {shape}" for shape, names in cases.items()) + "."


def _words(shape: dict[str, int]) -> str:
    return " ".join(f"{name}={value}" for name, value in shape.items())


def _each(values: Iterable, by: str = " and ") -> str:
    """Different values, in their order, None left out."""
    return by.join(dict.fromkeys(str(value) for value in values if value is not None))


def _who(name: str, records: dict[object, Record]) -> str:
    return f"{name} (peer)" if is_peer(records) else name


def _shape(record: Record) -> tuple:
    return tuple(sorted(record.shape.items()))


def _rate(record: Record) -> str | None:
    if not record.median or record.items is None:
        return None
    return f"{significant(record.items / record.median)} {record.unit or 'calls'}/s"


def _share(record: Record) -> float:
    """The error as a share of its budget."""
    return record.error / record.budget if record.budget else math.inf if record.error else 0.0


def _judged(record: Record | None) -> str:
    if record is None:
        return NONE
    word = "within" if record.error <= record.budget else "outside"
    return f"{word}: {record.error:.1e} of {record.budget:.1e}"


def plain(text: str) -> str:
    """Text that Markdown shows as it is, on one line."""
    return re.sub(r"([\\`*<>|&~\[\]])", r"\\\1", " ".join(text.split()))
