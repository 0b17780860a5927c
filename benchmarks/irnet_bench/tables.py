"""Numbers to tables: records as Markdown, and the README's block between its markers. Draws and measures nothing.

A figure stands only where a record has it. Where none does, a word says why: skipped, oom, error, wrong (the result is
outside its error budget, so its speed means nothing), or a dash where nobody asked.
"""

import functools
import importlib.resources
import math
import os
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from irnet import files
from irnet.errors import InputError
from irnet.report import html
from irnet_kernels.dispatch import IMPLEMENTATIONS

from .case import MODES
from .records import STATUSES, Record, read

if TYPE_CHECKING:
    from pandas import DataFrame, Series

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
        return html.render("table.md", __package__, table=self, plain=plain)


# ------------------------------------------------------------------------------------------------------------ records


def latest(records: Iterable[Record]) -> list[Record]:
    """Of every key and device the last record, in the order in which they first appear; those of sweeps apart."""
    return list({(r.key, r.swept, r.machine.get("device")): r for r in records}.values())


def devices(*measured: list[Record]) -> list[Device]:
    """The records of one file each, by the machine they come from; where files overlap, the later one counts."""
    by_device: dict[str, list[Record]] = {}
    for records in measured:
        for record in latest(records):
            by_device.setdefault(device_name(record.machine), []).append(record)
    return [Device(name, latest(records)) for name, records in by_device.items()]


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


def _frame(records: Iterable[Record], **more: Callable[[Record], object]) -> "DataFrame":
    """A row per record: itself as `record`, its fields and what the functions `more` say of it."""
    import pandas as pd

    says = {"who": lambda r: _who(r.implementation, r.peer), **more, "record": lambda r: r}
    rows = [vars(r) | {name: say(r) for name, say in says.items()} for r in records]
    return pd.DataFrame(rows, columns=[*Record.__dataclass_fields__, *says], dtype=object)


def _by(frame: "DataFrame", rows: str | list[str], columns: str, of: Iterable | None = None) -> "DataFrame":
    """The last records by two of a frame's columns, rows in the order in which they first appear; None for none."""
    wide = frame.pivot_table("record", rows, columns, aggfunc="last", sort=False).reindex(columns=of)
    return wide.astype(object).where(wide.notna(), None)


def contests(records: list[Record]) -> "dict[tuple[str, str], DataFrame]":
    """The records at their cases' own shapes, not at those of a sweep. Of several such shapes or seeds the last one.

    By case and dtype, a row per implementation: its records in the modes forward, backward and step or None; `full`,
    the one in the mode that says most about the case; and whether it is a `peer`.
    """
    own = {r.case: r.shape for r in records if not r.swept}
    frame = _frame(r for r in records if not r.swept and r.shape == own[r.case])
    result = {}
    for names, rows in frame.groupby(["case", "dtype"], sort=False):
        contest = _by(rows, "implementation", "mode", MODES)
        peers = rows.groupby("implementation")["peer"].any()
        result[names] = contest.assign(full=contest[fullest(rows["mode"])], peer=peers.astype(bool))
    return result


def fullest(modes: Iterable[str]) -> str:
    """The mode that says most about a case: a whole step where there is one, else the forward pass."""
    return min(modes, key=lambda mode: {"step": 0, "forward": 1}.get(mode, 2))


def chosen(contest: "DataFrame") -> str | None:
    """irnet's implementation in a contest that peers are compared with: the one that impl="auto" takes first.

    Where names say nothing of that order (a model's variants), it is the fastest; one that did not run comes last.
    """

    def rank(name: str) -> tuple:
        record = contest.full[name]
        ran = record is not None and verdict(record) == "ok" and record.median is not None
        order = ("auto", *IMPLEMENTATIONS)  # then ways to run a model, such as grad checkpointing
        return not ran, order.index(name) if name in order else len(order), record.median if ran else 0.0

    return min(contest.index[~contest.peer], key=rank, default=None)


def _mine(contest: "DataFrame") -> "Series":
    """The row of the implementation that peers are compared with; `name` and records are None where there is none."""
    ours = chosen(contest)
    return contest.loc[ours] if ours else contest.iloc[0].map(lambda _: None).rename(None)


# -------------------------------------------------------------------------------------------------------------- cells


def significant(value: float, digits: int = 3) -> str:
    """A number with so many significant digits and no exponent."""
    value = float(f"{value:.{digits - 1}e}")
    decimals = max(0, digits - 1 - math.floor(math.log10(abs(value)))) if value else 0
    return f"{value:.{decimals}f}"


def figure(text: Callable[[Record], str | None]) -> Callable[[Record | None], str]:
    """What `text` makes of a record, or the word that stands in its place."""

    def cell(record: Record | None) -> str:
        word = NONE if record is None else verdict(record)
        return (text(record) or NONE) if word == "ok" else word

    return cell


def _scaled(name: str, factor: float) -> Callable[[Record | None], str]:
    """A field of a record times a factor, as `figure` shows it."""
    return figure(lambda r: None if getattr(r, name) is None else significant(factor * getattr(r, name)))


milliseconds = _scaled("median", 1e3)
peak, saved = _scaled("peak_allocated_bytes", 2**-20), _scaled("saved_bytes", 2**-20)


@figure
def of_limit(record: Record) -> str | None:
    """The share of the limit that was measured in the same run."""
    if record.limit_fraction is None:
        return None
    return f"{significant(100 * record.limit_fraction, 2)} % of {record.limit or 'the limit'}"


@figure
def rate(record: Record) -> str | None:
    if not record.median or record.items is None:
        return None
    return f"{significant(record.items / record.median)} {record.unit or 'calls'}/s"


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
    measured = contests(records)
    rows = []
    for (case, dtype), contest in measured.items():
        for name, row in contest.iterrows():
            limits = of_limit(row.full), peak(row.full), saved(row.full)
            rows.append([case, dtype, _who(name, row.peer), *map(milliseconds, row[list(MODES)]), *limits])
    return _table("operators", rows, records, _shapes(measured))


def ratios(device: Device) -> Table:
    """What impl="auto" takes against every peer, at the default shape and in the same run."""
    rows, used = [], []
    left_out: dict[str, dict[str, list[str]]] = {}
    for (case, dtype), contest in contests(device.records).items():
        mine = _mine(contest)
        for name, row in contest[contest.peer].iterrows():
            cells = [time_ratio(mine[mode], row[mode]) for mode in MODES] + [memory_ratio(mine.full, row.full)]
            reason = _no_figure(cells)
            if reason:
                left_out.setdefault(reason, {}).setdefault(name, []).append(f"{case} {dtype}")
                continue
            used += filter(None, [*mine[list(MODES)], *row[list(MODES)]])
            rows.append([case, dtype, mine.name or NONE, name, *cells])
    notes = []
    for reason, names in left_out.items():
        of = "; ".join(f"{name} of {_each(cases, ', ')}" for name, cases in names.items())
        notes.append(f"Left out ({reason}): {of}.")
    return _table("ratios", rows, used, " ".join(notes))


def _no_figure(cells: list[str]) -> str | None:
    """Why a row of ratios holds no figure at all, or None where it holds one or tells of a failure of irnet's own."""
    words = [cell for cell in cells if cell != NONE]
    if any(word not in (OTHER_RUN, "wrong", *STATUSES) for word in words):
        return None
    return "measured in another run" if OTHER_RUN in words else _each(words, ", ") or "no figure"


def throughput(device: Device) -> Table:
    """The model, training and data at their default shapes."""
    records = [r for r in device.records if r.suite != "kernels"]
    measured, rows = contests(records), []
    for (case, dtype), contest in measured.items():
        for name, row in contest.iterrows():
            for mode, r in row[list(MODES)].dropna().items():
                if mode != "backward" or row.step is None:
                    cells = [milliseconds(r), rate(r), of_limit(r), peak(r)]
                    rows.append([case, dtype, _who(name, row.peer), mode, *cells])
    return _table("throughput", rows, records, _shapes(measured))


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

    def rest(r: Record) -> str:
        return _words({k: v for k, v in sorted(r.shape.items()) if k != name})

    frame = _frame((r for r in device.records if name in r.shape), value=lambda r: r.shape[name], rest=rest)
    full = frame.groupby("case")["mode"].agg(fullest)
    complete = []
    for (case, dtype, mode, others), rows in frame.groupby(["case", "dtype", "mode", "rest"], sort=False):
        measured = rows.groupby("implementation", sort=False)[["value", "record"]]
        lines = {who: dict(line.itertuples(index=False)) for who, line in measured}
        single = [who for who, line in lines.items() if len(line) < 2]
        lines = {who: line for who, line in lines.items() if len(line) > 1}
        if lines and mode == full[case]:
            complete.append(Sweep(case, dtype, mode, others, sorted(set().union(*lines.values())), lines, single))
    return complete


def swept(device: Device, name: str, text: Callable[[Record | None], str]) -> Table:
    """The sweeps over `name` as one table, a row per implementation."""
    rows, used = [], []
    complete = sweeps(device, name)
    columns = sorted({value for sweep in complete for value in sweep.values})
    for sweep in complete:
        twice = [(other.case, other.dtype) for other in complete].count((sweep.case, sweep.dtype)) > 1
        case = f"{sweep.case} {sweep.rest}" if twice else sweep.case
        for implementation, line in sweep.lines.items():
            peer = any(r.peer for r in line.values())
            rows.append([case, sweep.dtype, _who(implementation, peer), *(text(line.get(value)) for value in columns)])
            used += line.values()
    single = "; ".join(f"{_each(sweep.single, ', ')} of {sweep.case}" for sweep in complete if sweep.single)
    left_out = f"Left out (measured at one value only): {single}." if single else ""
    return _table(name, rows, used, left_out, [f"{name}={value}" for value in columns])


def memory_by_images(device: Device) -> Table:
    return swept(device, "images", peak)


def time_by_regions(device: Device) -> Table:
    return swept(device, "regions", milliseconds)


def correctness(device: Device) -> Table:
    """The largest error that was met, over all shapes, against what it may be."""
    used = [r for r in device.records if r.error is not None and r.budget is not None]
    frame = _frame(used, share=_share, of=lambda r: "result" if r.mode == "forward" else "gradients")
    rows = []
    for names, group in frame.astype({"share": float}).groupby(["case", "dtype", "who"], sort=False):
        worst = group.loc[group.groupby("of")["share"].idxmax()].set_index("of")["record"]
        rows.append([*names, _judged(worst.get("result")), _judged(worst.get("gradients"))])
    return _table("correctness", rows, used)


def missing(device: Device) -> Table:
    """Whatever was not measured, and why."""

    def reason(r: Record) -> str:
        return r.reason or ("the result is outside its error budget" if verdict(r) == "wrong" else NONE)

    used = [r for r in device.records if verdict(r) != "ok"]
    frame = _frame(used, word=verdict, why=reason, shown=lambda r: _words(r.shape))
    rows = []
    for (who, word, why), group in frame.groupby(["who", "word", "why"], sort=False):
        shapes = group["shown"].unique()
        shape = "; ".join(shapes) if len(shapes) < 3 else f"{len(shapes)} shapes"
        where = [", ".join(group[name].unique()) for name in ("case", "dtype", "mode")]
        rows.append([who, word, *where, shape or NONE, why])
    return _table("missing", rows, used)


def summary(device: Device) -> Table:
    """The operators in short: what impl="auto" takes and how it stands against the peers."""
    records = [r for r in device.records if r.suite == "kernels"]
    measured, rows = contests(records), []
    for (case, dtype), contest in measured.items():
        mine = _mine(contest)
        faster = {name: time_ratio(mine.full, theirs) for name, theirs in contest.full[contest.peer].items()}
        against = [f"{name} {text.removesuffix(' faster')}" for name, text in faster.items() if text != OTHER_RUN]
        times = [milliseconds(mine.forward), milliseconds(mine.step)]
        rows.append([case, dtype, mine.name or NONE, *times, peak(mine.full), "; ".join(against) or NONE])
    return _table("summary", rows, records, _shapes(measured))


TABLES = (operators, ratios, throughput, memory_by_images, time_by_regions, correctness, missing)


# ------------------------------------------------------------------------------------------------------------- README


def readme_block(measured: list[Device], folder: str = "") -> str:
    """What stands between the README's markers: a short table per device, and where the rest is.

    folder  of the results, as the README's reader reaches it
    """
    shown = {device.name: table for device in measured if (table := summary(device)).rows}
    return html.render("readme.md", __package__, tables=shown, folder=folder, plain=plain, nothing=NOTHING)


def block_of(readme: str | os.PathLike, paths: list[str | os.PathLike]) -> str:
    """The block that files of records give a README."""
    folder = os.path.relpath(Path(paths[0]).resolve().parent, Path(readme).resolve().parent)
    return readme_block(devices(*map(read, paths)), Path(folder).as_posix())


def write_readme(path: str | os.PathLike, block: str) -> None:
    """Put `block` between the markers of a README; everything else in it stays, byte by byte.

    Raises InputError where the two markers are not there once each, in their order, on lines of their own.
    """
    files.write(path, _with_block(text_of(path), block, path))


def is_current(readme: str | os.PathLike, paths: list[str | os.PathLike]) -> bool:
    """Whether what stands between the README's markers is what the records give; InputError where there are none."""
    text = text_of(readme)
    return text == _with_block(text, block_of(readme, paths), readme)


def text_of(path: str | os.PathLike) -> str:
    """A file's text with its line ends as they are."""
    try:
        return Path(path).read_bytes().decode()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(path, f"cannot be read ({error})", "give a text file") from error


def _with_block(text: str, block: str, path: str | os.PathLike) -> str:
    """The text of a README with this block between its markers."""
    parts = re.split(f"^({re.escape(BEGIN)}|{re.escape(END)})$", text, flags=re.MULTILINE)
    markers = parts[1::2]
    if markers != [BEGIN, END]:
        trouble = f"has {markers.count(BEGIN)} lines {BEGIN} and {markers.count(END)} lines {END}"
        if markers == [END, BEGIN]:
            trouble = f"has {END} before {BEGIN}"
        raise InputError(path, trouble, "put each on a line of its own, once and in this order")
    return f"{parts[0]}{BEGIN}\n\n{block.strip()}\n\n{END}{parts[-1]}"


# ------------------------------------------------------------------------------------------------------------- helpers


def _table(name: str, rows: list, records: list[Record], note: str = "", columns: Iterable[str] = ()) -> Table:
    """The table that `tables.yaml` describes: `note` completes its caption, `columns` its head."""
    spec = _tables()[name]
    caption = " ".join(filter(None, [spec["caption"].format(note).strip(), measured_on(records) if records else ""]))
    return Table(spec["title"], caption, [*spec["head"], *columns], spec["names"], rows)


@functools.cache
def _tables() -> dict:
    import yaml

    return yaml.safe_load(importlib.resources.files(__package__).joinpath("templates/tables.yaml").read_text("utf-8"))


def _shapes(measured: "dict[tuple[str, str], DataFrame]") -> str:
    """One sentence: which cases were measured at which shape."""
    cases: dict[str, dict[str, None]] = {}
    for (case, _), contest in measured.items():
        cases.setdefault(_words(contest.full.dropna().iloc[0].shape), {})[case] = None
    return "Shapes: " + "; ".join(f"{_each(names, ', ')} at {shape}" for shape, names in cases.items()) + "."


def _words(shape: dict[str, int]) -> str:
    return " ".join(f"{name}={value}" for name, value in shape.items())


def _each(values: Iterable, by: str = " and ") -> str:
    """Different values, in their order, None left out."""
    return by.join(dict.fromkeys(str(value) for value in values if value is not None))


def _who(name: str, peer: bool) -> str:
    return f"{name} (peer)" if peer else name


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
