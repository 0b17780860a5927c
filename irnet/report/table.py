"""The comparison of trained variants as rows of text, which the page and the terminal render. Draws nothing."""

import itertools
import math
import textwrap
from dataclasses import dataclass

WIDTH = 100  # columns of a terminal
KIND_MEANINGS = {
    "plain": "told by its own looks",
    "near": "told only by an object close to it",
    "far": "told only by an object far away in the image",
    "presence": "told only by what else the image holds, wherever that is",
}
_METRICS = [
    ("class_ap", "class AP", "class AP"),
    ("class_accuracy", "class accuracy", "class acc"),
    ("instance_accuracy", "instance accuracy", "inst acc"),
]


@dataclass
class Row:
    """One row of the comparison: `kind` is "variant", "gain" (of `variant` over conv) or "bound"."""

    kind: str
    variant: str
    name: str
    cells: list[str]


@dataclass
class Table:
    """The comparison of the variants: long and short column names and rows of text, "" where nothing is known."""

    columns: list[tuple[str, str]]
    rows: list[Row]


def comparison(runs: list[dict], facts: dict) -> Table:
    """The table every form renders: percentages of the final answers, gains over conv in points, and the bound.

    runs   one dict per variant: {"variant", "results", "history", "seconds", "parameters"}
    facts  {"bounds": {"instance_accuracy", "class_accuracy", "class_ap", "by_kind"}, ...}

    Everything but "variant" may be absent; columns of which nothing is known are left out.
    """
    bounds = facts.get("bounds") or {}
    sources = [_by_kind(run) for run in runs] + [bounds.get("by_kind") or {}]
    kinds = list(
        dict.fromkeys([k for k in KIND_MEANINGS if any(k in s for s in sources)] + [k for s in sources for k in s])
    )
    columns = [(long, short) for _, long, short in _METRICS] + [(kind, kind) for kind in kinds]
    columns += [("training time", "training"), ("parameters", "params")]

    def numbers(values: dict, by_kind: dict) -> list[float | None]:
        return [number(values.get(key)) for key, *_ in _METRICS] + [number(by_kind.get(kind)) for kind in kinds]

    measured = [(run["variant"], numbers(final_figures(run), _by_kind(run))) for run in runs]
    rows = [
        Row("variant", v, v, [*map(percent, values), _duration(run.get("seconds")), _count(run.get("parameters"))])
        for (v, values), run in zip(measured, runs, strict=True)
    ]
    start = dict(measured).get("conv", [])
    for v, values in measured if start else []:
        gains = [None if a is None or b is None else a - b for a, b in zip(values, start, strict=True)]
        if v != "conv" and any(g is not None for g in gains):
            cells = ["" if g is None else f"{100 * g:+.1f}" for g in gains]
            rows.append(Row("gain", v, f"{v} - conv", [*cells, "", ""]))
    limits = numbers(bounds, bounds.get("by_kind") or {})
    if any(limit is not None for limit in limits):
        rows.append(Row("bound", "", "box-only bound", [*map(percent, limits), "", ""]))
    keep = [i for i in range(len(columns)) if any(row.cells[i] for row in rows)]
    for row in rows:
        row.cells = [row.cells[i] for i in keep]
    return Table([columns[i] for i in keep], rows)


def table_text(runs: list[dict], facts: dict) -> str:
    """The comparison as aligned plain text, for a terminal of WIDTH columns; no newline at its end."""
    from tabulate import SEPARATING_LINE, tabulate

    table = comparison(runs, facts)
    lines = [["variant", *(short for _, short in table.columns)]]  # a row: tabulate makes columns of headings wider
    for _, rows in itertools.groupby(table.rows, lambda row: row.kind):
        lines += [SEPARATING_LINE, *([row.name, *(cell or "-" for cell in row.cells)] for row in rows)]
    sides = ["left"] + ["right"] * len(table.columns)
    return f"{tabulate(lines, disable_numparse=True, colalign=sides)}\n{textwrap.fill(legend(table), WIDTH)}"


def percent(value: float | None) -> str:
    """A fraction as a percentage with one decimal and no sign, "" for None."""
    return "" if value is None else f"{100 * value:.1f}"


def number(value) -> float | None:
    return float(value) if value is not None and math.isfinite(value) else None


def final_figures(run: dict) -> dict:
    return metrics_of(run).get("final") or {}


def metrics_of(run: dict) -> dict:
    return (run.get("results") or {}).get("metrics") or {}


def _by_kind(run: dict) -> dict:
    return (run.get("results") or {}).get("accuracy_by_kind") or {}


def _duration(seconds: float | None) -> str:
    if seconds is None:
        return ""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02d} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02d} min"


def _count(number: int | None) -> str:
    return "" if number is None else f"{number / 1e6:.2f} M" if number >= 1e6 else f"{number:,}"


def legend(table: Table) -> str:
    kinds = {row.kind for row in table.rows}
    text = "Per cent, final answers."
    text += " Gains over conv are in points." if "gain" in kinds else ""
    return text + (" The bound is the best that seeing one box alone allows." if "bound" in kinds else "")
