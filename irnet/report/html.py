"""What irnet's HTML pages share: the Jinja environment, pictures in a page, charts as inline SVG. Knows no results."""

import base64
import functools
import io
import math
import re
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from jinja2 import Environment
    from markupsafe import Markup
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from PIL.Image import Image

# Of the modules, and of variants where several are drawn. Middle tones: at least 3 to 1 against the page's ground in
# its light and in its dark scheme.
COLOURS = {"conv": "#808080", "local": "#2b7ad2", "global": "#de740e", "full": "#1f9a5b"}
INK = "#010203"  # stands for the text colour in a chart, which the page replaces by currentColor
_STYLE = Path(__file__).parent / "templates/chart.mplstyle"


def render(template: str, package: str = __package__, **values) -> str:
    """The text that a template of the folder `templates` of a package gives for these values; HTML escapes them."""
    return _environment(package).get_template(template).render(values)


@functools.cache
def _environment(package: str) -> "Environment":
    """The templates of a package, beside those of this one."""
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.ChoiceLoader([jinja2.PackageLoader(name) for name in dict.fromkeys((package, __package__))]),
        autoescape=lambda template: not template.endswith(".md"),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters["png"] = _png
    return environment


def _png(picture: "Image") -> str:
    """A picture as the text of its PNG in base 64."""
    buffer = io.BytesIO()
    picture.save(buffer, "PNG", optimize=True)
    return base64.b64encode(buffer.getvalue()).decode()


def chart(width: float = 4.4) -> "tuple[Figure, Axes]":
    """An empty chart in the pages' look; its width in inches."""
    import matplotlib
    from matplotlib.figure import Figure

    with matplotlib.rc_context(fname=_STYLE):
        figure = Figure(figsize=(width, 3.1))
        return figure, figure.subplots()


def charts(rows: int, width: float = 6.4) -> "tuple[Figure, list[Axes]]":
    """Empty charts one below the other, with one axis of steps or the like; their width in inches."""
    import matplotlib
    from matplotlib.figure import Figure

    with matplotlib.rc_context(fname=_STYLE):
        figure = Figure(figsize=(width, 2.6 * rows))
        return figure, figure.subplots(rows, sharex=True, squeeze=False)[:, 0].tolist()


def legend_of(axes: "Axes") -> None:
    """The legend of one of several charts, over its plot."""
    import matplotlib

    with matplotlib.rc_context(fname=_STYLE):
        axes.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=5, handlelength=1.6, borderaxespad=0.2)


def legend_above(figure: "Figure", axes: "Axes") -> None:
    """The legend over the plot, where no line can run through it."""
    import matplotlib

    names = axes.get_legend_handles_labels()[1]
    columns = len(names) if len(names) <= 4 else 3

    def points(columns: int) -> float:
        rows = math.ceil(len(names) / columns)
        return sum(36 + 5.3 * max(map(len, names[i : i + rows])) for i in range(0, len(names), rows))

    while columns > 1 and points(columns) > 72 * figure.get_figwidth():
        columns -= 1
    with matplotlib.rc_context(fname=_STYLE):
        figure.legend(loc="outside upper left", ncols=columns)


def svg(figure: "Figure", name: str, description: str) -> "Markup":
    """The figure as inline SVG that takes the page's text colour and font and whose ids no other chart shares."""
    import matplotlib
    from markupsafe import Markup

    buffer = io.StringIO()
    with matplotlib.rc_context({"svg.hashsalt": name}, _STYLE):
        figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None, "Format": None, "Type": None})
    text = buffer.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>|<style.*?</style>|<!--.*?-->", "", text, flags=re.DOTALL)
    text = re.sub(r'\bid="', f'id="{name}-', text)
    text = re.sub(r'href="#', f'href="#{name}-', text).replace("url(#", f"url(#{name}-")
    text = re.sub(r"'DejaVu Sans'[^;\"]*", "system-ui, sans-serif", text).replace(INK, "currentColor")
    box = re.search(r'viewBox="[^"]*"', text)[0]
    label = f'{box} role="img" aria-label="{escape(description)}"'
    return Markup(re.sub(r"^<svg[^>]*>", f"<svg {label}>", text, count=1).replace("xlink:href", "href"))


def file(figure: "Figure", form: str) -> bytes:
    """The figure as a file that stands by itself, on white; `form` is "png" or "svg"."""
    import matplotlib

    buffer = io.BytesIO()
    dateless = {"metadata": {"Date": None}} if form == "svg" else {}
    with matplotlib.rc_context({"svg.hashsalt": "irnet"}, _STYLE):
        figure.savefig(buffer, format=form, facecolor="white", dpi=150, **dateless)
    return buffer.getvalue()
