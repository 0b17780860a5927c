"""`irnet bench report`: one self-contained HTML page from records, and where the tables go. Measures nothing."""

import argparse
import sys
from collections.abc import Callable, Iterable

from irnet import files
from irnet.errors import InputError
from irnet.report import parts
from irnet.report.parts import escape

from . import charts, tables
from .findings import sentences
from .records import read
from .tables import MODIFIED, NONE, Device, Table, plain

_IMAGES = "irnet bench model --sweep images=1,2,4,8"
_REGIONS = "irnet bench kernels --sweep regions=1,10,50,100,300"


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
    found = tables.devices(*map(read, options.files))
    if options.check:
        return _check(options, found)
    if options.html:
        files.write(options.html, page(found))
    if options.markdown:
        files.write(options.markdown, markdown(found))
    if options.readme:
        tables.write_readme(options.readme, tables.block_of(options.readme, options.files))
    written = [path for path in (options.html, options.markdown, options.readme) if path]
    print("\n".join(written) if written else markdown(found).rstrip())
    return 0


def _check(options: argparse.Namespace, found: list[Device]) -> int:
    if options.html or not (options.readme or options.markdown):
        raise InputError("--check", "compares text", "give --readme or --markdown, and no --html")
    stale = []
    if options.readme and not tables.is_current(options.readme, options.files):
        stale.append(f"--readme {options.readme}")
    if options.markdown and tables.text_of(options.markdown) != markdown(found):
        stale.append(f"--markdown {options.markdown}")
    for option in stale:
        again = f"irnet bench report {' '.join(options.files)} {option}"
        print(f"{option.split()[1]} is not what the records give; write it with: {again}", file=sys.stderr)
    return 1 if stale else 0


# ----------------------------------------------------------------------------------------------------------- Markdown


def markdown(devices: list[Device]) -> str:
    """The findings and every table of every device."""
    blocks = ["# Benchmarks\n", "Written by `irnet bench report`; measured, never typed.\n"]
    for device in devices:
        blocks.append(f"## {plain(device.name)}\n")
        told = sentences(device)
        if told:
            blocks.append("### Findings\n\n" + "\n".join(f"- {plain(sentence)}" for sentence in told) + "\n")
        for table in (make(device) for make in tables.TABLES):
            if table.rows:
                blocks += [f"### {plain(table.title)}\n", table.markdown()]
    if not devices:
        blocks.append(f"{tables.NOTHING}\n")
    return "\n".join(blocks)


# --------------------------------------------------------------------------------------------------------------- page


def page(devices: list[Device]) -> str:
    """The text of the page; the devices are those of `tables.devices`."""
    look = charts.styles(devices)
    drawn = [
        parts.section("rooflines", "Rooflines", _rooflines(devices, look)),
        parts.section("images", "Memory against batch", _sweeps(devices, "images", look)),
        parts.section("regions", "Time against regions", _sweeps(devices, "regions", look)),
    ]
    sections = [
        parts.section("findings", "What came out", _findings(devices)),
        parts.section("peers", "Against peers", _each(devices, tables.ratios)),
        parts.section("operators", "Operators", _each(devices, tables.operators)),
        f"<div>{_legend(devices, look)}{''.join(drawn)}</div>",
        parts.section("throughput", "Model, training and data", _each(devices, tables.throughput)),
        parts.section("correctness", "Correctness", _each(devices, tables.correctness)),
        parts.section("missing", "Not measured", _each(devices, tables.missing)),
        parts.section("machines", "What was measured on what", _machines(devices)),
    ]
    names = " and ".join(device.name for device in devices)
    lede = f"Measured on {names}." if devices else tables.NOTHING
    if any(r.machine.get("dirty") for device in devices for r in device.records):
        lede += f" Some of it was {MODIFIED}, so the commit alone does not give it again."
    header = f"<h1>irnet benchmarks</h1>\n<p>{escape(lede)}</p>"
    return parts.document("irnet benchmarks", header, sections, _STYLE)


_WORDS = (
    "Where a figure is missing below, a word says why: skipped, oom (out of memory), error, or wrong (the result is "
    "outside its error budget, so its speed means nothing)."
)


def _findings(devices: list[Device]) -> str:
    """What the records say, a list of sentences per device."""
    lists = []
    for device in devices:
        first, *others = sentences(device) or ["No operator was measured beside a peer in one run."]
        items = "".join(f"<li>{escape(sentence)}</li>" for sentence in others)
        told = f"<ul class=findings>{items}</ul>" if items else ""
        lists.append(f"<h3>{escape(device.name)}</h3><p><strong>{escape(first)}</strong></p>{told}")
    return f"{''.join(lists)}<p>{_WORDS}</p>" if lists else ""


def _legend(devices: list[Device], look: dict) -> str:
    """The one legend of all charts; on a wide screen it stays in sight while they scroll by."""
    drawn = charts.drawn(devices)
    items = "".join(f"<li>{charts.mark(style)}{escape(name)}</li>" for name, style in look.items() if name in drawn)
    if not items:
        return ""
    text = "In all charts, filled marks and solid lines are irnet's, hollow marks and dashed lines are peers."
    return f'<div class=legend><p>{text}</p><ul aria-label="Legend">{items}</ul></div>'


def _machines(devices: list[Device]) -> str:
    """Every fact of every machine; where records differ, all that was met."""
    blocks = []
    for device in devices:
        machines = _different(r.machine for r in device.records)
        names = dict.fromkeys(name for machine in machines for name in machine if name != "dirty")
        facts = {name: _fact(_different(machine.get(name) for machine in machines)) for name in names}
        days = sorted({r.time[:10] for r in device.records})
        modified = any(machine.get("dirty") for machine in machines)
        badge = f" <span class=warning>{MODIFIED}</span>" if modified else ""
        count = f"{len(device.records)}, of runs {', '.join(dict.fromkeys(r.run for r in device.records))}"
        facts |= {"measured": f"{days[0]} to {days[-1]}" if len(days) > 1 else days[0], "records": count}
        blocks.append(f"<h3>{escape(device.name)}{badge}</h3>{parts.dictionary(facts)}")
    return "".join(blocks)


def _different(values: Iterable) -> list:
    """The different values, None left out, in their order."""
    found = []
    for value in values:
        if value is not None and value not in found:
            found.append(value)
    return found


def _fact(met: list) -> str | None:
    """One fact in words: its values, the range of many numbers, or None."""
    if len(met) > 3 and all(isinstance(value, (int, float)) for value in met):
        return f"{_words(min(met))} to {_words(max(met))}"
    return "; ".join(map(_words, met[:3])) + (f" and {len(met) - 3} others" if len(met) > 3 else "") or None


def _words(value: object) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{name} {_words(part)}" for name, part in value.items() if part is not None)
    return f"{value:g}" if isinstance(value, float) else str(value)


def _each(devices: list[Device], make: Callable[[Device], Table]) -> str:
    """A table per device that has something to put into it."""
    made = [(device, make(device)) for device in devices]
    return "".join(f"<h3>{escape(device.name)}</h3>{_table(table)}" for device, table in made if table.rows)


def _table(table: Table) -> str:
    rows, before = [], None
    for first, *others in table.rows:
        cells = [f"<td{_tone(c) if i >= table.names else ''}>{_cell(c)}</td>" for i, c in enumerate(others, 1)]
        again = " class=again" if first == before else ""
        rows.append(f"<tr><th scope=row{again}>{escape(first)}</th>{''.join(cells)}</tr>")
        before = first
    made = parts.table(table.title, table.caption, table.head, "".join(rows))
    return f'<div class="dense names{table.names}">{made}</div>'


def _cell(text: str) -> str:
    return "&ndash;" if text == NONE else escape(text)


def _tone(text: str) -> str:
    """The class of a cell. Colours only repeat what its words say."""
    word = text.rpartition(" ")[2] if text else ""
    if word in ("faster", "less") or text.startswith("within"):
        return " class=up"
    if word in ("slower", "more", "wrong", "error", "oom") or text.startswith("outside"):
        return " class=down"
    return " class=soft" if word in ("skipped", NONE) else ""


def _rooflines(devices: list[Device], look: dict) -> str:
    blocks = []
    for d, device in enumerate(devices):
        figures = []
        for n, dtype in enumerate(dict.fromkeys(r.dtype for r in device.records)):
            drawn = []
            for mode in charts.MODES:
                found, matmul, copy = charts.points(device, dtype, mode)
                if found and matmul and copy and not (mode == "step" and drawn):
                    what = f"{dtype} {mode} on {device.name}"
                    svg = charts.roofline(found, matmul, copy, look, f"roofline-{d}-{n}-{mode}", what)
                    ceilings = f"copy {charts.rate(copy, 'B/s')}, matrix product {charts.rate(matmul, 'FLOP/s')}"
                    drawn.append(parts.picture(svg, f"{dtype}, {mode}. Ceilings: {ceilings}."))
            figures += drawn
        if figures:
            blocks.append(f"<h3>{escape(device.name)}</h3><div class='charts wide'>{''.join(figures)}</div>")
    if not blocks:
        return "<p>No operator was measured beside both ceilings. <code>irnet bench kernels</code> does that.</p>"
    text = (
        "A point is one implementation of one operator at its default shape: the fewest operations that the operator "
        "needs, per fewest bytes and per second. The line is what this machine reached in the same runs: a large copy "
        "(slope) and a large matrix product (top)."
    )
    return f"<p>{text}</p>{''.join(blocks)}"


_SWEEPS: dict[str, tuple] = {
    "images": (
        tables.memory_by_images,
        lambda r: None if r.peak_allocated_bytes is None else r.peak_allocated_bytes / 2**20,
        "MiB",
        _IMAGES,
        "Peak memory above what was there before the call.",
    ),
    "regions": (
        tables.time_by_regions,
        lambda r: None if r.median is None else 1e3 * r.median,
        "ms",
        _REGIONS,
        "Median time; the band runs from the 20th to the 80th percentile.",
    ),
}


def _sweeps(devices: list[Device], name: str, look: dict) -> str:
    make, value, unit, command, text = _SWEEPS[name]
    blocks = []
    for d, device in enumerate(devices):
        figures = []
        for i, found in enumerate(tables.sweeps(device, name)):
            svg = charts.sweep(found, value, unit, look, f"{name}-{d}-{i}", name)
            if svg:
                rest = f", {found.rest}" if found.rest else ""
                caption = f"{found.case}, {found.dtype}, {found.mode}{rest}."
                figures.append(parts.picture(svg, f"{caption} {_stopped(found)}".strip()))
        table = make(device)
        if table.rows:
            drawn = f"<div class=charts>{''.join(figures)}</div>" if figures else ""
            blocks.append(f"<h3>{escape(device.name)}</h3>{drawn}{_table(table)}")
    if not blocks:
        return f"<p>No case was measured for two numbers of {name}. <code>{command}</code> does that.</p>"
    return f"<p>{text}</p>{''.join(blocks)}"


def _stopped(found: tables.Sweep) -> str:
    """Where lines end because something went wrong."""
    ends = []
    for implementation, line in found.lines.items():
        for x, record in sorted(line.items()):
            if tables.verdict(record) not in ("ok", "skipped"):
                ends.append(f"{implementation}: {tables.verdict(record)} at {x}")
                break
    return f"{'; '.join(ends)}." if ends else ""


_STYLE = """
.names3 :is(th, td):nth-child(-n + 3), .names4 :is(th, td):nth-child(-n + 4), .names7 :is(th, td) { text-align: left }
.names7 td:last-child { white-space: normal; min-width: 18rem; overflow-wrap: anywhere }
.dense :is(th, td) { padding: .28rem .65rem }
.dense tbody :is(th, td) { font-size: .9rem }
.dense .again { font-weight: 400; color: var(--soft) }
.soft { color: var(--soft) }
.warning { color: var(--down); border: 1px solid; border-radius: 1em; padding: .1em .7em; font-size: .8rem;
  font-weight: 600; white-space: nowrap; display: inline-block }
.charts.wide { grid-template-columns: repeat(auto-fill, minmax(min(100%, 26rem), 1fr)) }
.legend { padding: .5rem 0; background: var(--paper); border-bottom: 1px solid var(--line); margin-top: 3rem }
.legend p { margin: 0 0 .3rem; font-size: .9rem; color: var(--soft) }
.legend ul { list-style: none; margin: 0; padding: 0; display: flex; flex-wrap: wrap; gap: .1rem 1.1rem;
  font-size: .88rem }
.legend li { display: flex; align-items: center; gap: .4rem }
.legend svg { width: .95rem; height: .95rem }
@media (min-width: 56rem) and (min-height: 40rem) { .legend { position: sticky; top: 0; z-index: 1 } }
.findings { padding-left: 1.2rem; max-width: 62rem }
.findings li { margin: .25rem 0 }
code { font-size: .92em; overflow-wrap: anywhere }
"""
