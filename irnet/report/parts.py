"""What irnet's HTML pages share: the document, its style sheet, tables that scroll, charts as SVG. Knows no results."""

import html
import io
import math
import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

INK = "#010203"  # stands for the text colour in a chart, which the page replaces by currentColor


def document(title: str, header: str, sections: list[str], style: str = "") -> str:
    """The text of one self-contained page; header, sections and style are inserted as they are."""
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>{escape(title)}</title>
<style>{_STYLE}{style}</style>
</head>
<body>
<header>
{header}
</header>
<main>
{"".join(sections)}
</main>
</body>
</html>
"""


def escape(text: object) -> str:
    return html.escape(str(text), quote=True)


def section(name: str, heading: str, body: str) -> str:
    return f'<section aria-labelledby="{name}"><h2 id="{name}">{heading}</h2>\n{body}</section>\n' if body else ""


def table(label: str, caption: str, columns: list[str], body: str) -> str:
    """A table that scrolls by itself on a narrow screen; focusable, so that it does from the keyboard too.

    label, caption  the same for those who hear it, and the text below it
    columns, body   the heads, and the rows as HTML
    """
    text = f"<table><caption>{escape(caption)}</caption>{head(columns)}<tbody>{body}</tbody></table>"
    return f'<div class="scroll" role="region" aria-label="{escape(label)}" tabindex="0">{text}</div>'


def head(columns: list[str]) -> str:
    return f"<thead><tr>{''.join(f'<th scope=col>{escape(c)}</th>' for c in columns)}</tr></thead>"


def dictionary(values: dict) -> str:
    """Names and values as a <dl>; a value of None is left out, one with parts is joined by commas."""
    rows = []
    for name, value in values.items():
        if value is None:
            continue
        if isinstance(value, dict):
            value = ", ".join(f"{k} {v}" for k, v in value.items())
        elif isinstance(value, (list, tuple)):
            value = ", ".join(map(str, value))
        rows.append(f"<div><dt>{escape(name.replace('_', ' '))}</dt><dd>{escape(value)}</dd></div>")
    return f"<dl>{''.join(rows)}</dl>" if rows else ""


def picture(content: str, caption: str) -> str:
    return f"<figure>{content}<figcaption>{escape(caption)}</figcaption></figure>"


def chart(width: float = 4.4) -> "tuple[Figure, Axes]":
    """An empty chart in the pages' look; its width in inches."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, 3.1), layout="constrained")
    axes = figure.subplots()
    figure.patch.set_alpha(0)
    axes.patch.set_alpha(0)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    for side in ("left", "bottom"):
        axes.spines[side].set(color=INK, alpha=0.5)
    axes.tick_params(colors=INK, labelsize=9)
    axes.xaxis.label.set(color=INK, size=10)
    axes.yaxis.label.set(color=INK, size=10)
    axes.grid(color=INK, alpha=0.12, linewidth=0.7)
    return figure, axes


def legend_above(figure: "Figure", axes: "Axes") -> int:
    """The legend over the plot, where no line can run through it; returns its number of rows."""
    names = axes.get_legend_handles_labels()[1]
    columns = len(names) if len(names) <= 4 else 3

    def points(columns: int) -> float:
        rows = math.ceil(len(names) / columns)
        return sum(36 + 5.3 * max(map(len, names[i : i + rows])) for i in range(0, len(names), rows))

    while columns > 1 and points(columns) > 72 * figure.get_figwidth():
        columns -= 1
    figure.legend(loc="outside upper left", ncols=columns, fontsize=9, frameon=False, labelcolor=INK, columnspacing=1.2)
    return math.ceil(len(names) / max(columns, 1))


def svg(figure: "Figure", name: str, description: str) -> str:
    """The figure as inline SVG that takes the page's text colour and font and whose ids no other chart shares."""
    import matplotlib

    buffer = io.StringIO()
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": name}):
        figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None, "Format": None, "Type": None})
    text = buffer.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>|<style.*?</style>|<!--.*?-->", "", text, flags=re.DOTALL)
    text = re.sub(r'\bid="', f'id="{name}-', text)
    text = re.sub(r'href="#', f'href="#{name}-', text).replace("url(#", f"url(#{name}-")
    text = re.sub(r"'DejaVu Sans'[^;\"]*", "system-ui, sans-serif", text).replace(INK, "currentColor")
    box = re.search(r'viewBox="[^"]*"', text)[0]
    label = f'{box} role="img" aria-label="{escape(description)}"'
    return re.sub(r"^<svg[^>]*>", f"<svg {label}>", text, count=1).replace("xlink:href", "href")


_STYLE = """
:root { --paper: #ffffff; --ink: #1b1e23; --soft: #5a616b; --line: #dfe2e6; --card: #f6f7f9;
  --up: #11703f; --down: #b3261e }
@media (prefers-color-scheme: dark) {
  :root { --paper: #14161a; --ink: #e8eaed; --soft: #a3abb5; --line: #343942; --card: #1d2026;
    --up: #58c98c; --down: #ff8a80 }
}
* { box-sizing: border-box }
html { -webkit-text-size-adjust: 100% }
body { margin: 0 auto; max-width: 1120px; padding: 1.5rem 1rem 4rem; background: var(--paper); color: var(--ink);
  font: 1rem/1.55 system-ui, -apple-system, "Segoe UI", Roboto, sans-serif }
header p, section > p { max-width: 46rem }
h1 { font-size: clamp(1.5rem, 1.1rem + 2.2vw, 2.4rem); line-height: 1.18; margin: .2rem 0 1rem;
  max-width: 30ch; text-wrap: balance }
h2 { font-size: 1.3rem; margin: 3rem 0 .8rem }
h3 { font-size: 1.05rem; margin: 1.6rem 0 .6rem }
.title, caption, figcaption, dt { color: var(--soft) }
.title { margin: 0; font-size: .95rem }
.scroll { overflow-x: auto; border: 1px solid var(--line); border-radius: 8px }
table { border-collapse: separate; border-spacing: 0; width: 100%; font-variant-numeric: tabular-nums }
caption { caption-side: bottom; text-align: left; padding: .6rem .8rem; font-size: .85rem;
  border-top: 1px solid var(--line) }
th, td { padding: .5rem .8rem; text-align: right; white-space: nowrap; vertical-align: baseline }
th:first-child { text-align: left }
.scroll th:first-child { position: sticky; left: 0; background: var(--paper) }
thead th { font-weight: 500; color: var(--soft); font-size: .85rem; vertical-align: bottom; white-space: normal }
tbody th, tbody td { border-top: 1px solid var(--line) }
tbody th { font-weight: 600 }
.up { color: var(--up) }
.down { color: var(--down) }
.charts, .cards, .strip { display: grid; gap: 1.2rem;
  grid-template-columns: repeat(auto-fill, minmax(min(100%, 19rem), 1fr)) }
.charts { margin: 1rem 0 }
figure { margin: 0 }
figcaption { font-size: .9rem; padding-top: .35rem }
svg { display: block; width: 100%; height: auto }
dl { margin: 0; display: grid; gap: .4rem }
dl div { display: grid; grid-template-columns: 6rem 1fr; gap: .8rem }
dd { margin: 0; overflow-wrap: anywhere }
.hidden { position: absolute; width: 1px; height: 1px; overflow: hidden; clip-path: inset(50%) }
@media print { .scroll { overflow: visible } }
"""
