"""What pages share: templates that escape, pictures as text, and charts whose ids no other chart has."""

import base64
import io
import re

import jinja2
import numpy as np
import pytest
from PIL import Image

from irnet.report import html


def chart(name: str) -> str:
    figure, axes = html.chart()
    axes.plot([1, 2], [3, 4], color=html.INK, label="a line")
    html.legend_above(figure, axes)
    return html.svg(figure, name, 'over "x" & y')


def test_a_chart_takes_the_pages_colour_and_says_what_it_shows():
    text = chart("one")
    assert text.startswith("<svg") and 'role="img" aria-label="over &quot;x&quot; &amp; y"' in text
    assert html.INK not in text and "currentColor" in text and "<style" not in text and "<metadata" not in text


def test_ids_of_charts_are_their_own_and_the_same_every_time():
    one, other = (set(re.findall(r'\bid="([^"]*)"', chart(name))) for name in ("one", "other"))
    assert one and other and not one & other
    assert chart("one") == chart("one")


def test_a_picture_survives_as_text():
    pixels = np.arange(48, dtype=np.uint8).reshape(4, 4, 3)
    text = html._environment(html.__package__).filters["png"](Image.fromarray(pixels))
    assert np.array_equal(np.asarray(Image.open(io.BytesIO(base64.b64decode(text)))), pixels)


def test_a_value_that_is_missing_is_an_error():
    with pytest.raises(jinja2.UndefinedError, match="title"):
        html.render("page.html")
