"""`irnet bench report`: one self-contained HTML page from records, and where the tables go. Measures nothing."""

import argparse
import sys
from typing import TYPE_CHECKING

from irnet import files
from irnet.errors import InputError
from irnet.report import html

from . import charts, tables
from .findings import sentences
from .records import read
from .tables import MODIFIED, NONE, NOTHING, Device, plain

if TYPE_CHECKING:
    from pandas import Series


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("files", nargs="+", metavar="FILE", help="JSONL files of records, one per device")
    parser.add_argument("--html", metavar="PATH", help="write one self-contained page")
    parser.add_argument("--markdown", metavar="PATH", help="write every table")
    parser.add_argument("--readme", metavar="PATH", help="write the short tables between the README's markers")
    parser.add_argument(
        "--check", action="store_true", help="write nothing; exit with 1 if --readme or --markdown is not up to date"
    )


def run(options: argparse.Namespace) -> int:
    """Write what is asked for, or print the Markdown; with --check say whether it is up to date."""
    devices = tables.devices(*map(read, options.files))
    if options.check:
        return _check(options, devices)
    if options.html:
        files.write(options.html, page(devices))
    if options.markdown:
        files.write(options.markdown, markdown(devices))
    if options.readme:
        tables.write_readme(options.readme, tables.block_of(options.readme, options.files))
    written = [path for path in (options.html, options.markdown, options.readme) if path]
    print("\n".join(written) if written else markdown(devices).rstrip())
    return 0


def _check(options: argparse.Namespace, devices: list[Device]) -> int:
    if options.html or not (options.readme or options.markdown):
        raise InputError("--check", "compares text", "give --readme or --markdown, and no --html")
    stale = []
    if options.readme and not tables.is_current(options.readme, options.files):
        stale.append(f"--readme {options.readme}")
    if options.markdown and tables.text_of(options.markdown) != markdown(devices):
        stale.append(f"--markdown {options.markdown}")
    for option in stale:
        again = f"irnet bench report {' '.join(options.files)} {option}"
        print(f"{option.split()[1]} is not what the records give; write it with: {again}", file=sys.stderr)
    return 1 if stale else 0


def markdown(devices: list[Device]) -> str:
    """The findings and every table of every device."""

    def tables_of(device: Device) -> list[tables.Table]:
        return [table for make in tables.TABLES if (table := make(device)).rows]

    values = {"sentences": sentences, "tables_of": tables_of, "plain": plain, "nothing": NOTHING}
    return html.render("benchmarks.md", __package__, devices=devices, **values).rstrip() + "\n"


def page(devices: list[Device]) -> str:
    """The text of one self-contained HTML page; the devices are those of `tables.devices`."""
    look, drawn = charts.styles(devices), charts.drawn(devices)
    return html.render(
        "report.html",
        __package__,
        title="irnet benchmarks",
        devices=devices,
        tables=tables,
        sentences=sentences,
        tone_of=_tone,
        none_word=NONE,
        nothing=NOTHING,
        modified=MODIFIED,
        legend={name: charts.mark(style) for name, style in look.items() if name in drawn},
        rooflines=charts.rooflines(devices, look),
        images=charts.sweeps(devices, "images", look),
        regions=charts.sweeps(devices, "regions", look),
        machines=[_machine(device) for device in devices],
    )


def _machine(device: Device) -> dict:
    """Every fact of a machine; where records differ, all that was met."""
    import pandas as pd

    met = pd.DataFrame([r.machine | {"measured": r.time[:10], "records": r.run} for r in device.records], dtype=object)
    facts = {name: _fact(column.dropna()) for name, column in met.items() if name != "dirty"}
    days, runs = sorted(met["measured"].unique()), ", ".join(met["records"].unique())
    facts["measured"] = f"{days[0]} to {days[-1]}" if len(days) > 1 else days[0]
    facts["records"] = f"{len(met)}, of runs {runs}"
    return {"name": device.name, "modified": "dirty" in met and any(met["dirty"]), "facts": facts}


def _fact(values: "Series") -> str | None:
    """One fact in words: its different values, the range of many numbers, or None."""
    words = values.map(_words).unique()
    if len(words) > 3 and values.map(type).isin([int, float]).all():
        return f"{_words(values.min())} to {_words(values.max())}"
    return "; ".join(words[:3]) + (f" and {len(words) - 3} others" if len(words) > 3 else "") or None


def _words(value: object) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{name} {_words(part)}" for name, part in value.items() if part is not None)
    return f"{value:g}" if isinstance(value, float) else str(value)


def _tone(text: str) -> str:
    """The class of a cell. Colours only repeat what its words say."""
    word = text.rpartition(" ")[2]
    if word in ("faster", "less") or text.startswith("within"):
        return "up"
    if word in ("slower", "more", "wrong", "error", "oom") or text.startswith("outside"):
        return "down"
    return "soft" if word in ("skipped", NONE) else ""
