"""The page that compares trained variants. Takes results and pictures as plain data; runs no model."""

import base64
import io
import math
import os
from collections.abc import Sequence

from PIL import Image

from .. import files
from ..models.predictions import FINAL, PredictionKey
from . import parts
from .draw import CLUE, QUESTION, Reasoning, attention_overlay, chains, highlight, memory_overlay, puzzle, trail
from .parts import escape
from .table import KIND_MEANINGS, comparison, final_figures, legend, metrics_of, number, percent

# Middle tones: at least 3 to 1 against the page's ground in its light and in its dark scheme.
COLOURS = {"conv": "#868c94", "local": "#2f80dc", "global": "#d4720f", "full": "#1f9a5b"}
_DASHES = {"conv": (0, (1, 1.4)), "local": (0, (5, 1.6)), "global": (0, (5, 1.4, 1, 1.4)), "full": "solid"}


def write_page(
    path: str | os.PathLike,
    title: str,
    runs: list[dict],
    gallery: list[dict],
    facts: dict,
    scenes: Sequence[Reasoning] | None = None,
    puzzles: Sequence[dict] = (),
) -> None:
    """Writes one self-contained HTML page that compares the variants; atomically, making its folder if need be.

    path     where it goes; an existing page is replaced
    title    the page's title, shown above the finding
    runs     one dict per variant: {"variant", "results": results.json, "history": [{"step", "loss", ...}, ...],
             "seconds": of training, "parameters": count}; everything but "variant" may be absent
    gallery  boxes that the full model got right and others wrong: {"reasonings": {variant: Reasoning}, "region": int}
    facts    "bounds", "data", "machine", "versions", "seed" and others; what is absent is left out
    scenes   reasonings whose memory and attention are drawn; by default the first two of the gallery's
    puzzles  one box per kind of puzzle, shown first: {"reasonings", "region"} as in the gallery, "kind", "rule" (one
             sentence) and "clue" (indices of the boxes that give the class away)

    Raises InputError where the page cannot be written.
    """
    files.write(path, page(title, runs, gallery, facts, scenes, puzzles))


def page(
    title: str,
    runs: list[dict],
    gallery: list[dict],
    facts: dict,
    scenes: Sequence[Reasoning] | None = None,
    puzzles: Sequence[dict] = (),
) -> str:
    """The text of the page; the arguments are `write_page`'s."""
    scenes = _first_scenes(gallery) if scenes is None else scenes
    headline, lede = _finding(title, runs, facts)
    sections = [
        parts.section("puzzles", "What cannot be told from looks alone", _puzzles_html(puzzles)),
        parts.section("results", "What came out", _table_html(runs, facts)),
        parts.section("iterations", "Accuracy by iteration", _iterations_html(runs, facts)),
        parts.section("gallery", _gallery_title(gallery), _gallery_html(gallery)),
        parts.section("inside", "What the model remembers and where it looks", _scenes_html(scenes)),
        parts.section("training", "Training", _losses_html(runs)),
        parts.section(
            "facts", "How this was measured", parts.dictionary({k: v for k, v in facts.items() if k != "bounds"})
        ),
    ]
    name = f"<p class=title>{escape(title)}</p>" if headline != title else ""
    header = "\n".join([name, f"<h1>{escape(headline)}</h1>", "".join(f"<p>{escape(p)}</p>" for p in lede)])
    return parts.document(title, header, sections, _STYLE)


def _finding(title: str, runs: list[dict], facts: dict) -> tuple[str, list[str]]:
    """The headline and the paragraphs under it: what was measured and what came out, in plain words."""
    by_name = {run["variant"]: run for run in runs}
    others = [v for v in by_name if v != "conv"]
    best = "full" if "full" in by_name else others[-1] if others else None
    before, after = (
        number(final_figures(by_name[v]).get("instance_accuracy")) if v in by_name else None for v in ("conv", best)
    )
    headline, lede = title, []
    if before is not None and after is not None:
        numbers = f"from {percent(before)} % to {percent(after)} %"
        count = (by_name[best].get("results") or {}).get("regions")
        # Two standard errors of the difference, as if the two were measured on different boxes: a cautious yardstick.
        spread = 2 * math.sqrt((before * (1 - before) + after * (1 - after)) / count) if count else 0.0
        if abs(after - before) <= spread:
            headline = (
                f"Reasoning over boxes made no clear difference: {percent(before)} % without, {percent(after)} % with"
            )
        elif after > before:
            headline = f"Letting boxes reason about each other raised accuracy {numbers}"
        else:
            headline = f"Letting boxes reason about each other lowered accuracy {numbers}"
        results = by_name[best].get("results") or {}
        where = f"on {results['regions']:,} boxes" if "regions" in results else ""
        where += f" in {results['images']:,} images" if where and "images" in results else ""
        where += f" of the {results['split']} split" if where and "split" in results else ""
        sentence = f"Accuracy is the share of boxes whose class was named right{', ' + where if where else ''}."
        lede.append(
            f"{sentence} The starting point, conv, is a ConvNet without reasoning; {_DESCRIPTIONS[best]}"
            if best in _DESCRIPTIONS
            else sentence
        )
        if count and abs(after - before) <= spread:
            lede.append("The difference is smaller than two standard errors, so it may be chance.")
        limit = number((facts.get("bounds") or {}).get("instance_accuracy"))
        if limit is not None:
            bound = f"Whatever classifier sees one box and nothing else stays at or below {percent(limit)} % here"
            lede.append(f"{bound}; {best} reaches {percent(after)} %.")
    if facts.get("data"):
        lede.append(f"Data: {facts['data']}.")
    return headline, lede


_DESCRIPTIONS = {
    "local": "local adds a spatial memory that all boxes read and write.",
    "global": "global adds a graph that joins boxes and classes.",
    "full": "full adds a spatial memory that all boxes read and write (local) and a graph that joins boxes and "
    "classes (global).",
}


def _swatch(variant: str) -> str:
    return f'<span class="dot" style="background:{COLOURS[variant]}"></span>' if variant in COLOURS else ""


def _table_html(runs: list[dict], facts: dict) -> str:
    table = comparison(runs, facts)
    if not table.columns:
        return ""
    gains = {row.variant: row.cells for row in table.rows if row.kind == "gain"}
    body = []
    for row in table.rows:
        if row.kind == "gain":
            continue
        cells = []
        for i, cell in enumerate(row.cells):
            gain = gains.get(row.variant, [""] * len(row.cells))[i] if row.kind == "variant" else ""
            tone = "" if not gain else " up" if float(gain) > 0 else " down" if float(gain) < 0 else ""
            mark = f' <small class="gain{tone}">{gain.replace("-", "&minus;")}</small>' if gain else ""
            cells.append(f"<td>{escape(cell) or '&ndash;'}{mark}</td>")
        name = f"{_swatch(row.variant)}{escape(row.name)}"
        body.append(f'<tr class="{row.kind}"><th scope=row>{name}</th>{"".join(cells)}</tr>')
    told = [(name, KIND_MEANINGS[name]) for name, _ in table.columns if name in KIND_MEANINGS]
    kinds = "".join(f"<div><dt>{escape(name)}</dt><dd>{escape(meaning)}</dd></div>" for name, meaning in told)
    note = f"<p>The boxes by what gives their class away:</p><dl class=kinds>{kinds}</dl>" if kinds else ""
    columns = ["variant", *(long for long, _ in table.columns)]
    return parts.table("Results of the variants", legend(table), columns, "".join(body)) + note


def _iterations_html(runs: list[dict], facts: dict) -> str:
    measured: dict[str, dict[PredictionKey, float]] = {}
    for run in runs:
        accuracies = {
            PredictionKey.parse(name): number(m.get("instance_accuracy")) for name, m in metrics_of(run).items()
        }
        measured[run["variant"]] = {key: a for key, a in accuracies.items() if a is not None}
    keys = sorted({key for accuracies in measured.values() for key in accuracies})
    if not keys:
        return ""
    cells = {
        v: "".join(f"<td>{percent(accuracies.get(key)) or '&ndash;'}</td>" for key in keys)
        for v, accuracies in measured.items()
    }
    rows = "".join(f"<tr><th scope=row>{_swatch(v)}{escape(v)}</th>{cells[v]}</tr>" for v in measured if measured[v])
    caption = "Instance accuracy of every prediction, per cent."
    table = parts.table("Accuracy by iteration", caption, ["variant", *map(str, keys)], rows)
    limit = number((facts.get("bounds") or {}).get("instance_accuracy"))
    chart = _iterations_chart(measured, limit)
    text = (
        "Both modules start from the prediction of the ConvNet. Solid: local, dashed: global, dot: the final mixture."
    )
    return f"<div class=beside>{parts.picture(chart, text)}{table}</div>" if chart else table


def _iterations_chart(measured: dict[str, dict[PredictionKey, float]], limit: float | None) -> str:
    """Accuracy over iterations, a line per variant and module; "" where no variant has iterations."""
    last = max((key.iteration for accuracies in measured.values() for key in accuracies), default=0)
    if last == 0:
        return ""
    figure, axes = parts.chart()
    for variant, accuracies in measured.items():
        colour, labelled = COLOURS.get(variant, "#9a5fc0"), False
        keys = [key for key in accuracies if key != FINAL]
        for module, chain in (chains(keys) or {"conv": range(len(keys))}).items():
            points = [(keys[k].iteration, 100 * accuracies[keys[k]]) for k in chain]
            style = {"local": "solid", "global": (0, (4, 1.5))}.get(module, "dotted")
            label = None if labelled else variant
            axes.plot(
                *zip(*sorted(points), strict=True), color=colour, linestyle=style, marker="o", markersize=3, label=label
            )
            labelled = True
        if FINAL in accuracies:
            label = None if labelled else variant
            axes.plot([last + 1], [100 * accuracies[FINAL]], "o", color=colour, markersize=6, label=label)
    if limit is not None:
        axes.axhline(100 * limit, color=parts.INK, linewidth=1, linestyle=(0, (2, 2)), label="box-only bound")
    axes.set_xticks(range(last + 2), ["conv", *map(str, range(1, last + 1)), "final"])
    axes.set_xlabel("iteration")
    axes.set_ylabel("instance accuracy, %")
    parts.legend_above(figure, axes)
    told = "; ".join(f"{v} ends at {percent(a[FINAL])} %" for v, a in measured.items() if FINAL in a)
    return parts.svg(figure, "iterations", f"Instance accuracy over the iterations: {told}.")


_LOSSES = {
    "loss": "The whole loss",
    "loss_conv": "Loss of the ConvNet's prediction",
    "loss_local": "Loss of the local module's predictions",
    "loss_global": "Loss of the global module's predictions",
    "loss_final": "Loss of the final mixture",
}


def _losses_html(runs: list[dict]) -> str:
    """One small chart per loss, so that each stays legible on a phone."""
    names = [key for run in runs for row in run.get("history") or [] for key in row if key.startswith("loss")]
    charts, binned = [], 1
    for name in dict.fromkeys(names):
        lines = {}
        for run in runs:
            history = run.get("history") or []
            points = [
                (row["step"], row[name]) for row in history if "step" in row and number(row.get(name)) is not None
            ]
            if points:
                size = math.ceil(len(points) / 120)
                binned = max(binned, size)
                groups = [points[i : i + size] for i in range(0, len(points), size)]
                lines[run["variant"]] = [
                    [sum(column) / len(group) for column in zip(*group, strict=True)] for group in groups
                ]
        if not lines:
            continue
        figure, axes = parts.chart()
        for variant, points in lines.items():
            style = {"color": COLOURS.get(variant, "#9a5fc0"), "linestyle": _DASHES.get(variant, "solid")}
            axes.plot(*zip(*points, strict=True), label=variant, **style)
        axes.set_xlabel("step")
        axes.set_ylabel(name.replace("_", " "))
        axes.set_ylim(bottom=0)
        parts.legend_above(figure, axes)
        what = _LOSSES.get(name, f"Loss of {name.removeprefix('loss_').replace('_', ' ')}")
        told = ", ".join(f"{v} ends at {points[-1][1]:.3g}" for v, points in lines.items())
        charts.append(parts.picture(parts.svg(figure, name, f"{what} over training: {told}."), f"{what}."))
    if not charts:
        return ""
    note = "<p>The whole loss sums over all predictions, so it is larger for variants that make more of them.</p>"
    note += f"<p>Every point is the mean of up to {binned} logged steps.</p>" if binned > 1 else ""
    return f"{note}<div class=charts>{''.join(charts)}</div>"


def _image(picture: Image.Image, alt: str) -> str:
    """An <img> that carries its PNG."""
    buffer = io.BytesIO()
    picture.save(buffer, "PNG", optimize=True)
    data = base64.b64encode(buffer.getvalue()).decode()
    size = f"width={picture.width} height={picture.height}"
    return f'<img src="data:image/png;base64,{data}" alt="{escape(alt)}" {size} loading="lazy">'


_ASKED = {
    "near": "The clue is near",
    "far": "The clue is far away",
    "presence": "The clue is anywhere",
}
_WITHOUT_AND_WITH = {"conv": "ConvNet", "full": "with reasoning"}


def _puzzles_html(puzzles: Sequence[dict]) -> str:
    """One card per kind of puzzle: the picture with box and clue, the rule, the answers without and with reasoning."""
    cards = "".join(map(_puzzle_card, puzzles))
    if not cards:
        return ""
    key = (
        '<p class=key><span><span class="frame asked"></span>the box in question</span>'
        '<span><span class="frame clue"></span>its clue, which lies outside what the ConvNet sees of the box</span></p>'
    )
    return f"<p>One held-out scene for every kind of puzzle.</p>{key}<div class='cards puzzles'>{cards}</div>"


def _puzzle_card(entry: dict) -> str:
    region, reasonings = entry["region"], entry["reasonings"]
    shown = reasonings.get("full") or next(iter(reasonings.values()))
    truth = shown.truth(region)
    told = " and ".join(_plain(shown.truth(other) or "") for other in entry["clue"]) or "nothing else"
    alt = f"Part of a scene. Framed: a box that truly holds a {_plain(truth)}. Framed in dashes, its clue: {told}."
    rows = ""
    for variant, name in _WITHOUT_AND_WITH.items():
        if variant in reasonings:
            answer, score = reasonings[variant].answer(region)
            verdict = "<dd class=up>✓ right</dd>" if answer == truth else "<dd class=down>✗ wrong</dd>"
            rows += f"<div><dt>{name}</dt><dd>{escape(_plain(answer))}, {score:.2f}</dd>{verdict}</div>"
    picture = _image(puzzle(shown, region, entry["clue"]).quantize(256), alt)
    heading = (
        f"<h3>{escape(_ASKED.get(entry['kind'], entry['kind']))} <span class=kind>{escape(entry['kind'])}</span></h3>"
    )
    answers = f"<p>Truly: <strong>{escape(_plain(truth))}</strong></p><dl class=answers>{rows}</dl>"
    caption = f"<figcaption>{heading}<p class=rule>{escape(entry['rule'])}</p>{answers}</figcaption>"
    return f"<figure class=card>{picture}{caption}</figure>"


def _plain(name: str | None) -> str:
    """A class's name as a reader says it."""
    return "box of unknown class" if name is None else name.replace("_", " ")


def _only_full(entry: dict) -> bool:
    """Whether no variant but "full" named this box rightly."""
    region = entry["region"]
    right = {v for v, r in entry["reasonings"].items() if r.answer(region)[0] == r.truth(region)}
    return right == {"full"}


def _gallery_title(gallery: list[dict]) -> str:
    if all(map(_only_full, gallery)):
        return "Boxes that only the full model got right"
    return "Boxes that the full model got right and others did not"


def _gallery_html(gallery: list[dict]) -> str:
    if not gallery:
        return "<p>There is none: no box was named right by the full model and wrong by all others.</p>"
    alone = sum(map(_only_full, gallery))
    intro, cards = "", []
    if alone < len(gallery):
        intro = f"<p>Of these {len(gallery)}, {alone} were named right by the full model alone.</p>"
    for entry in gallery:
        region, reasonings = entry["region"], entry["reasonings"]
        shown = reasonings.get("full") or next(iter(reasonings.values()))
        truth, kind = shown.truth(region), shown.kind(region)
        rows = []
        for variant, reasoning in reasonings.items():
            answer, score = reasoning.answer(region)
            right = None if truth is None else answer == truth
            mark = "" if right is None else "✓ right" if right else "✗ wrong"
            tone = "" if right is None else ' class="up"' if right else ' class="down"'
            cells = f"<td>{escape(answer)}</td><td>{score:.2f}</td><td{tone}>{mark}</td>"
            rows.append(f"<tr><th scope=row>{_swatch(variant)}{escape(variant)}</th>{cells}</tr>")
        name = f"<strong>{escape(truth)}</strong>" if truth is not None else "true class unknown"
        name += f" <span class=kind>{escape(kind)}</span>" if kind else ""
        changes = trail(shown, region, "→")
        changes = (
            f"<p class=trail>{escape(shown.variant or 'full')}, by iteration: {escape(changes)}</p>" if changes else ""
        )
        alt = f"An image of {len(shown.boxes)} boxes; the highlighted one is {truth or 'of unknown class'}."
        table = f"<table>{parts.head(['variant', 'answer', 'score', ''])}<tbody>{''.join(rows)}</tbody></table>"
        table = table.replace("<th scope=col></th>", '<th scope=col><span class="hidden">verdict</span></th>')
        caption = f"<figcaption><p>{name}</p>{table}{changes}</figcaption>"
        picture = highlight(shown, region).quantize(256)  # a third of the bytes; a page should be small enough to mail
        cards.append(f"<figure class=card>{_image(picture, alt)}{caption}</figure>")
    return f"{intro}<div class=cards>{''.join(cards)}</div>"


def _first_scenes(gallery: list[dict]) -> list[Reasoning]:
    """The full model's reasonings on the first two different images of the gallery."""
    found = {}
    for entry in gallery:
        reasoning = entry["reasonings"].get("full")
        if reasoning is not None:
            found.setdefault(reasoning.image.tobytes(), reasoning)
    return list(found.values())[:2]


def _scenes_html(scenes: Sequence[Reasoning]) -> str:
    strips = []
    for n, reasoning in enumerate(scenes, 1):
        writes = 0 if reasoning.memory is None else len(reasoning.memory)
        figures = [
            parts.picture(
                _image(memory_overlay(reasoning, m), f"Scene {n}: heat map of the spatial memory after write {m + 1}."),
                f"Memory after write {m + 1} of {writes}",
            )
            for m in range(writes)
        ]
        alt = f"Scene {n}: every box coloured by the module its attention lies on."
        figures.append(
            parts.picture(
                _image(attention_overlay(reasoning), alt), "Attention: the modules that every answer comes from"
            )
        )
        strips.append(f"<h3>Scene {n}</h3><div class=strip>{''.join(figures)}</div>")
    if not strips:
        return ""
    text = "<p>Heat maps show how strong the spatial memory is in each place (root mean square over its channels); "
    return f"{text}all maps of a scene share one scale. White frames are the boxes.</p>{''.join(strips)}"


_STYLE = f"""
.frame.asked {{ border: 3px solid rgb{QUESTION} }}
.frame.clue {{ border: 3px dashed rgb{CLUE} }}
"""
_STYLE += """
.key { display: flex; flex-wrap: wrap; gap: .3rem 1.4rem; font-size: .95rem; margin: .3rem 0 1rem }
.frame { display: inline-block; width: 1.5em; height: 1.5em; margin: 0 .5em 0 3px; vertical-align: middle;
  outline: 3px solid #33383f; background: #33383f }
.cards.puzzles { align-items: stretch }
.puzzles h3 { margin: 0 0 .4rem; color: var(--ink) }
.puzzles .rule { color: var(--ink) }
.card .answers { grid-template-columns: auto 1fr auto; gap: .15rem .5rem; font-size: .86rem }
.answers div { display: contents }
.answers dt { white-space: nowrap }
.puzzles strong { font-size: inherit }
tr.bound th, tr.bound td { font-style: italic; font-weight: 400; color: var(--soft) }
.gain { display: block; line-height: 1.1; font-size: .78rem; color: var(--soft) }
.gain.up { color: var(--up) }
.gain.down { color: var(--down) }
.dot { display: inline-block; width: .65em; height: .65em; border-radius: 50%; margin-right: .5em }
.beside { display: grid; gap: 1.2rem; align-items: center }
@media (min-width: 56rem) { .beside { grid-template-columns: minmax(0, 2fr) minmax(0, 3fr) } }
.beside th, .beside td { padding: .5rem .6rem }
.cards { grid-template-columns: repeat(auto-fill, minmax(min(100%, 18rem), 1fr)); align-items: start }
.strip { grid-template-columns: repeat(auto-fill, minmax(min(100%, 15rem), 1fr)) }
img { display: block; width: 100%; height: auto; border-radius: 6px }
.card { background: var(--card); border: 1px solid var(--line); border-radius: 10px; overflow: hidden }
.card img { border-radius: 0; max-height: 26rem; object-fit: contain }
.card figcaption { padding: .7rem .8rem }
.card p { margin: 0 0 .4rem }
.card strong { color: var(--ink); font-size: 1.05rem }
.card th, .card td { padding: .25rem .4rem .25rem 0; font-size: .88rem }
.card td:nth-child(2) { text-align: left; white-space: normal; color: var(--ink) }
.card th:nth-child(2) { text-align: left }
.card .trail { margin: .6rem 0 0; font-size: .82rem }
.kind { border: 1px solid var(--line); border-radius: 1em; padding: .05em .6em; font-size: .8rem; margin-left: .3rem }
"""
