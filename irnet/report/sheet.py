"""A contact sheet: many images in one picture, each with its boxes and their names. Takes plain arrays."""

from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw

from .draw import _box_colour, _on, _outline, _pixel_boxes
from .fonts import typeface

CELL, COLUMNS, TEXT = 320, 4, 12  # pixels of a cell's side, cells of a row, pixels of letters
PAPER, INK = (255, 255, 255), (24, 26, 30)

Entry = tuple[np.ndarray, np.ndarray, Sequence[str], str]


def contact_sheet(entries: Sequence[Entry]) -> Image.Image:
    """One picture of all entries.

    Args:
        entries: Of each image its pixels (uint8 [H, W, 3], RGB), boxes (float32 [R, 4], x1 y1 x2 y2 in pixels), their R
            names and a title. At least one.

    Returns:
        The picture, its cells in rows of COLUMNS. A class has the same colour everywhere.
    """
    classes = sorted({name for _, _, names, _ in entries for name in names})
    face = typeface([*classes, *(title for *_, title in entries)])
    colours = {name: _box_colour(i) for i, name in enumerate(classes)}
    shown = dict(zip(classes, face.names(classes), strict=True))
    font = face.font(TEXT)
    height = CELL + 2 * TEXT
    rows = -(-len(entries) // COLUMNS)
    sheet = Image.new("RGB", (min(len(entries), COLUMNS) * CELL, rows * height), PAPER)
    for number, (image, boxes, names, title) in enumerate(entries):
        picture = Image.fromarray(image)
        scale = (CELL - 8) / max(picture.size)
        picture = picture.resize([max(1, round(side * scale)) for side in picture.size], Image.Resampling.LANCZOS)
        draw = ImageDraw.Draw(picture)
        frames = _pixel_boxes(boxes, scale, picture.size)
        largest = sorted(range(len(frames)), key=lambda r: -np.prod(boxes[r, 2:] - boxes[r, :2]))
        for r in largest:
            _outline(draw, frames[r], colours[names[r]], 2)
        for r in largest:
            text, colour = shown[names[r]], colours[names[r]]
            x, y = frames[r][0], max(0, frames[r][1] - 2)
            draw.rectangle(draw.textbbox((x + 1, y), text, font=font), fill=colour)
            draw.text((x + 1, y), text, fill=_on(colour), font=font)
        left, top = number % COLUMNS * CELL, number // COLUMNS * height
        sheet.paste(picture, (left + 4, top + TEXT + 8))
        label = face.plain(title)
        while len(label) > 4 and font.getlength(label) > CELL - 8:
            label = f"...{label[4:]}" if label.startswith("...") else f"...{label[1:]}"
        ImageDraw.Draw(sheet).text((left + 4, top + 2), label, fill=INK, font=font)
    return sheet
