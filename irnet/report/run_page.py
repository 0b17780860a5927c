"""The page of one run: a folder that opens from disk. Takes plain data and an image at a time; runs no model.

index.html holds tables, page.js all that moves. Data lie in data/*.js, which the page takes by need as scripts, for
nothing may be fetched from file://; every picture is a file of its own.
"""

import functools
import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from matplotlib import colormaps
from PIL import Image

from .. import files
from ..models.predictions import CONV, FINAL
from . import curve, gains, html
from .draw import Reasoning

NAMES = ("index.html", "page.js", "data", "pictures", "memory")  # all that the folder holds
CHUNK = 2**18  # bytes of data that the page takes at once for an image
INDEX = 2**20  # bytes of one file of the index, all of which it takes as it opens
# Files by which a page is known, and what stands in their first KiB.
MARKS = {"index.html": b'<meta name="generator" content="irnet page">', "page.js": b""}
LONGEST = 1000  # pixels of a picture's longer side
SCALE = 10_000  # scores and attention are written as whole numbers of it
TOP = 5  # classes of a final answer


class Cause(NamedTuple):
    """An edge that changed the answer of a region.

    kind    "region" where it comes from another region of the image, "class" where it joins two classes
    type    of the edge: left, right, above, below, overlap, or a relation of the class graph
    source  the region or class that it comes from
    target  the region or class that it leads to
    effect  how much it changes the margin of the answer
    """

    kind: str
    type: str
    source: int
    target: int
    effect: float


@dataclass
class Shown:
    """One image of the page.

    name        of its file
    reasoning   what the model made of it
    attributes  by name, a value for each region
    causes      by region, the edges that changed its answer, the strongest first; absent where none were measured
    """

    name: str
    reasoning: Reasoning
    attributes: dict[str, list[str]] = field(default_factory=dict)
    causes: dict[int, list[Cause]] = field(default_factory=dict)


def check(folder: str | Path) -> None:
    """InputError where a page cannot be written into a folder, for that holds something else."""
    files.check_folder(folder, NAMES, MARKS, "a page")


def write(
    folder: str | Path,
    title: str,
    run: gains.RunAnswers,
    images: Iterable[Shown],
    history: Sequence[dict] = (),
    facts: dict[str, Any] | None = None,
    edge_kinds: Sequence[str] = (),
    measured: int = 0,
) -> Path:
    """Write the folder, or put it in the place of an earlier one; returns the path of its index.html.

    Of the images one is in memory at a time, and a bounded part of what is written.

    Args:
        folder: Where it is to lie.
        title: What stands above the headline.
        run: What the run answers for all regions of the data set.
        images: Those that can be looked at.
        history: The lines of metrics.jsonl.
        facts: Further names and values, of which None is left out.
        edge_kinds: The kinds of edges that the model has.
        measured: For how many regions of an image edges were measured at most.

    Raises:
        InputError: The folder holds something else, or cannot be written.
    """
    check(folder)
    with files.whole_folder(folder) as fresh:
        with files.writing(folder):
            for name in ("data", "pictures", "memory"):
                (fresh / name).mkdir()
        writer = _Writer(fresh)
        for nth, shown in enumerate(images, 1):  # an error of reading them is not one of writing
            with files.writing(folder):
                writer.add(nth, shown)
        with files.writing(folder):
            writer.close()
            edges = {"kinds": list(edge_kinds), "measured": measured}
            _script(fresh / "data/run.js", "run", _run_record(run) | {"edges": edges})
            text = _index(title, run, writer, history, facts or {})
            (fresh / "index.html").write_bytes(text.encode(errors="replace"))  # names of files may be no text
            (fresh / "page.js").write_bytes(resources.files(__package__).joinpath("templates/run_page.js").read_bytes())
    return Path(folder) / "index.html"


def _run_record(run: gains.RunAnswers) -> dict[str, Any]:
    """What page.js has to know of the whole run."""
    keys = [str(key) for key in sorted(run.best) if key != FINAL]
    return {
        "classes": run.classes,
        "keys": keys,
        "colours": html.COLOURS,
        "scale": SCALE,
        "perClass": gains.class_rows(run),
        "pairs": gains.pairs(run),
        "variant": {module: any(key.startswith(module) for key in keys) for module in ("local", "global")},
    }


def _index(title: str, run: gains.RunAnswers, writer: "_Writer", history: Sequence[dict], facts: dict[str, Any]) -> str:
    """The text of index.html."""
    described = curve.description(list(history))
    return html.render(
        "run_page.html",
        title=title,
        head=gains.headline(run),
        reasons=len(run.best) > 2,
        shown=writer.images,
        parts_of_index=writer.index.number,
        metrics=gains.metric_rows(run),
        columns=[name for _, name in gains.METRICS],
        seeds=gains.seed_rows(run),
        runs=1 + len(run.seeds),
        curve=html.svg(curve.figure(list(history)), "curve", described) if described else "",
        fewest=gains.FEWEST,
        facts={name: value for name, value in facts.items() if value is not None},
    )


class _Parts:
    """A list of values as scripts of a bounded size, each a call of one of the page's functions."""

    def __init__(self, folder: Path, name: str, limit: int):
        self.folder, self.name, self.limit = folder, name, limit
        self.number, self.waiting, self.bytes = 0, [], 0

    def add(self, value: Any) -> int:
        """Add a value; the number of the script that it will be in."""
        text = _json(value)
        if self.waiting and self.bytes + len(text) > self.limit:
            self.flush()
        self.waiting.append(text)
        self.bytes += len(text) + 1
        return self.number

    def flush(self) -> None:
        if self.waiting:
            path = self.folder / f"{self.name}-{self.number}.js"
            path.write_text(f"irnetPage.{self.name}({self.number},[{','.join(self.waiting)}]);\n", encoding="ascii")
            self.number, self.waiting, self.bytes = self.number + 1, [], 0


class _Writer:
    """Writes pictures and data of one image after the other."""

    def __init__(self, folder: Path):
        self.folder, self.images = folder, 0
        self.chunks, self.index = _Parts(folder / "data", "chunk", CHUNK), _Parts(folder / "data", "index", INDEX)
        self.chunk, self.position = 0, 0

    def add(self, nth: int, shown: Shown) -> None:
        reasoning = shown.reasoning
        conv, final = reasoning.scores[reasoning.keys.index(CONV)], reasoning.final
        rows, labels = np.arange(len(final)), reasoning.labels
        rise = final[rows, labels] - conv[rows, labels]
        pictures = _save_pictures(self.folder, nth, reasoning)
        chunk = self.chunks.add(_record(shown) | pictures)
        self.chunk, self.position = chunk, self.position + 1 if chunk == self.chunk and self.images else 0
        entry = [shown.name, pictures["picture"], chunk, self.position]
        self.index.add([*entry, labels.tolist(), conv.argmax(1).tolist(), final.argmax(1).tolist(), _whole(rise)])
        self.images += 1

    def close(self) -> None:
        self.chunks.flush()
        self.index.flush()


def _script(path: Path, function: str, value: Any) -> None:
    path.write_text(f"irnetPage.{function}({_json(value)});\n", encoding="ascii")


def _json(value: Any) -> str:
    """JSON in ASCII, which is JavaScript as well."""
    return json.dumps(value, separators=(",", ":"), allow_nan=False)


def _whole(values: np.ndarray) -> list:
    """Scores as whole numbers."""
    return np.rint(values * SCALE).astype(np.int64).tolist()


def _record(shown: Shown) -> dict[str, Any]:
    """What the page shows of one image: answers, attention, memory and causes of every region."""
    reasoning = shown.reasoning
    best, order = reasoning.scores.argmax(2), _first(reasoning.final, TOP)
    scores = np.take_along_axis(reasoning.scores, best[..., None], 2)[..., 0]
    own = np.take_along_axis(reasoning.scores, reasoning.labels[None, :, None], 2)[..., 0]
    height, width = reasoning.image.shape[:2]
    record: dict[str, Any] = {
        "width": width,
        "height": height,
        "boxes": [[round(float(side), 1) for side in box] for box in reasoning.boxes],
        "best": best.T.tolist(),  # [R, K], as all that follows
        "scores": _whole(scores.T),
        "own": _whole(own.T),
        "attention": _whole(reasoning.attention.T),
        "top": order.tolist(),
        "topScores": _whole(np.take_along_axis(reasoning.final, order, 1)),
        "ownFinal": _whole(reasoning.final[np.arange(len(order)), reasoning.labels]),
        "attributes": shown.attributes,
        "causes": {
            region: [[*cause[:4], round(float(cause.effect), 4)] for cause in c] for region, c in shown.causes.items()
        },
    }
    if reasoning.memory is not None:
        record["energy"] = [[float(f"{e:.3g}") for e in row] for row in _energies(reasoning).tolist()]
    return record


def _first(scores: np.ndarray, count: int) -> np.ndarray:
    """The indices of the largest scores of each row, the largest first: [R, count], or as many as there are."""
    count = min(count, scores.shape[1])
    largest = np.argpartition(scores, -count, axis=1)[:, -count:]
    order = np.take_along_axis(scores, largest, 1).argsort(1)[:, ::-1]
    return np.take_along_axis(largest, order, 1)


def _energies(reasoning: Reasoning) -> np.ndarray:
    """[R, M]: the mean magnitude of the memory after each write, over the cells in every box or the nearest one."""
    x1, y1, x2, y2 = reasoning.boxes.T[..., None]
    down, across = (
        _share(np.arange(n) * float(reasoning.stride), *ends)
        for n, ends in zip(reasoning.memory.shape[1:], ((y1, y2), (x1, x2)), strict=True)
    )
    return np.einsum("rv,mvu,ru->rm", down, reasoning.memory, across)


def _share(positions: np.ndarray, low: np.ndarray, high: np.ndarray) -> np.ndarray:
    """[R, n]: even weights of the positions between two ends, or all on the nearest one where there is none."""
    inside = (positions >= low) & (positions <= high)
    nearest = np.arange(len(positions)) == np.abs(positions - (low + high) / 2).argmin(1, keepdims=True)
    inside = np.where(inside.any(1, keepdims=True), inside, nearest)
    return inside / inside.sum(1, keepdims=True)


@functools.cache
def _heat() -> tuple[bytes, bytes]:
    """The colours of 256 levels of the memory, and their opacity: where there is little the image shows through."""
    colours = (colormaps["inferno"](np.arange(256))[:, :3] * 255).astype(np.uint8)
    return colours.tobytes(), (np.linspace(0.35, 0.85, 256) * 255).astype(np.uint8).tobytes()


def _save_pictures(folder: Path, nth: int, reasoning: Reasoning) -> dict[str, Any]:
    """Write the image and the heat maps of its memory; their names and places."""
    picture = Image.fromarray(reasoning.image)
    picture.thumbnail((LONGEST, LONGEST), Image.Resampling.LANCZOS)
    name = f"pictures/{nth:06d}.jpg"
    picture.save(folder / name, quality=88, subsampling=0 if max(picture.size) < 400 else 2)
    if reasoning.memory is None:
        return {"picture": name}
    top = float(reasoning.memory.max())
    writes, stride = [], float(reasoning.stride)
    # A cell lies at the corner of its pixels: the last ones go on to the image's edge.
    more = [
        max(0, math.ceil(pixels / stride + 0.5) - cells)
        for pixels, cells in zip(reasoning.image.shape[:2], reasoning.memory.shape[1:], strict=True)
    ]
    memory = np.pad(reasoning.memory, [(0, 0), (0, more[0]), (0, more[1])], mode="edge")
    for k, heat in enumerate(memory, 1):
        levels = np.clip(np.rint(heat / (top or 1.0) * 255), 0, 255).astype(np.uint8)
        picture = Image.fromarray(levels, "P")
        colours, opacity = _heat()
        picture.putpalette(colours)
        writes.append(f"memory/{nth:06d}-{k}.png")
        picture.save(folder / writes[-1], transparency=opacity)
    height, width = memory.shape[1:]
    return {"picture": name, "memory": [writes, width, height, stride, float(f"{top:.3g}")]}
