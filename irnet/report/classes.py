"""What an evaluation found of single classes, as text for a terminal: the best, the worst, and what is confused.
Computes no metric and draws nothing."""

import unicodedata
from typing import TYPE_CHECKING

from ..metrics import confusions
from ..models.predictions import CONV, FINAL

if TYPE_CHECKING:
    from ..engine.evaluate import Scores

MOST = 5  # classes at each end of the table, and twice as many confusions
NAME = 32  # columns of a terminal for a class's name


def classes_text(scores: "Scores", classes: list[str]) -> str:
    """The classes that reasoning helped most and least, and the most frequent confusions, in at most 100 columns.

    Where no prediction but the ConvNet's has entered the final one, classes are sorted by their AP.
    """
    return "\n\n".join([*_sorted_classes(scores, classes), *_confusions(scores, classes)])


def _sorted_classes(scores: "Scores", classes: list[str]) -> list[str]:
    before, after = scores.per_class[CONV], scores.per_class[FINAL]
    gains = {c: row["ap"] - before[c]["ap"] for c, row in after.items() if row["regions"]}
    order = sorted(gains, key=lambda c: (-gains[c], -after[c]["ap"], c))
    listed = order if len(order) <= 2 * MOST else [*order[:MOST], None, *order[-MOST:]]
    rows = [("", "regions", "AP conv", "AP final", "gain", "accuracy conv", "final")]
    for c in listed:
        if c is None:
            rows.append((f"... {len(order) - 2 * MOST} more", *[""] * 6))
            continue
        values = (before[c]["ap"], after[c]["ap"], gains[c], before[c]["accuracy"], after[c]["accuracy"])
        forms = ("{:.1f}", "{:.1f}", "{:+.1f}", "{:.1f}", "{:.1f}")
        cells = [form.format(100 * value) for form, value in zip(forms, values, strict=True)]
        rows.append((cut(classes[c], NAME), f"{after[c]['regions']:,}", *cells))
    return ["classes by their gain in AP over the ConvNet, in per cent\n" + _aligned(rows, 1)]


def _confusions(scores: "Scores", classes: list[str]) -> list[str]:
    """The most frequent ones, or nothing where every region is named rightly by both predictions."""
    pairs = confusions(scores.labels, scores.predicted[CONV], scores.predicted[FINAL])
    wrong = [row for row in pairs if row.true != row.predicted]
    if not wrong:
        return []
    rows = [("is", "taken for", "regions", "by conv", "resolved", "made")]
    for row in wrong[: 2 * MOST]:
        names = (cut(classes[c], NAME) for c in (row.true, row.predicted))
        rows.append((*names, *(f"{count:,}" for count in row[2:])))
    title = f"the most frequent of {len(wrong):,} confusions, and how many of their regions reasoning resolved and made"
    return [f"{title}\n{_aligned(rows, 2)}"]


def cut(name: str, columns: int) -> str:
    """A name of at most so many columns of a terminal, on which letters of East Asia take two."""
    name = "".join(letter if letter.isprintable() else "?" for letter in name)
    if width(name) <= columns:
        return name
    while width(name) > columns - 3:
        name = name[:-1]
    return name + "..."


def width(text: str) -> int:
    """How many columns of a terminal a text takes."""
    return sum(1 + (unicodedata.east_asian_width(letter) in "WF") for letter in text)


def _aligned(rows: list[tuple[str, ...]], names: int) -> str:
    """Rows of text in columns: the first `names` to the left, the others to the right."""
    widths = [max(map(width, column)) for column in zip(*rows, strict=True)]
    lines = []
    for row in rows:
        room = [" " * (most - width(cell)) for most, cell in zip(widths, row, strict=True)]
        cells = zip(row, room, strict=True)
        lines.append("  ".join(cell + pad if i < names else pad + cell for i, (cell, pad) in enumerate(cells)).rstrip())
    return "\n".join(lines)
