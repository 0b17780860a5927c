"""The sources that a class graph is built from, as the command line names them: SOURCE or SOURCE=PATH."""

import json
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from .. import files
from ..data.annotated import AnnotatedImages
from ..data.coco_file import integers
from ..data.dataset import RegionDataset
from ..errors import InputError
from ..progress import Progress
from .ade20k import relate_by_ade20k
from .annotations import derive_class_graph
from .combine import Relations, combine
from .format import ClassGraph
from .names import relate_names
from .visual_genome import relate_by_predicates
from .wndb import Nouns
from .word_vectors import name_vectors, relate_by_similarity
from .wordnet import choose_senses, read_senses, relate_by_wordnet, senses_text

log = logging.getLogger("irnet")


@dataclass
class BuildOptions:
    """What builders need beside the classes.

    data            name of the data set, "ade20k" or another; "": none
    root            folder of that data set, which a source without a path is read from; "": none
    train           training part of that data set, or None
    predicates      how many predicates of Visual Genome to take
    min_count       edges of ADE20K's parts and of predicates that were seen fewer times are left out
    neighbours      similar classes to each class, at most
    senses          WordNet's senses by hand, as `read_senses` takes them
    write_senses    file that the chosen senses are written into; "": none
    images          names of the images that ADE20K and Visual Genome are restricted to; None: the training images of
                    the data set where it is the source itself, else all
    """

    data: str = ""
    root: str = ""
    train: RegionDataset | None = None
    predicates: int = 20
    min_count: int = 1
    neighbours: int = 5
    senses: Sequence[str] = ()
    write_senses: str = ""
    images: frozenset[str] | None = None


def build_class_graph(sources: Sequence[str], classes: Sequence[str], options: BuildOptions) -> ClassGraph:
    """Build a class graph from one source or several.

    Args:
        sources: Each a name of SOURCES, or NAME=PATH.
        classes: Names of the classes, in the data set's order.
        options: What the builders need.

    Returns:
        The class graph, see `combine`.

    Raises:
        InputError: A source is unknown, cannot be read, or all of them together give no edge.
    """
    for source in sources:
        if source.partition("=")[0] not in SOURCES:
            raise InputError("--from", f"no source is named {source!r}", f"give one of {', '.join(SOURCES)}")
    all_relations = []
    for source in sources:
        name, _, path = source.partition("=")
        with Progress(f"class graph from {name}"):
            relations = SOURCES[name](classes, path, options)
        all_relations.append(relations)
        log.info("%s: %s", name, ", ".join(f"{key} {len(edges)}" for key, edges in relations.items()))
    return combine(classes, all_relations)


def _from_annotations(classes: Sequence[str], path: str, options: BuildOptions) -> Relations:
    if options.train is None or path:
        cure = "leave out --classes, and name the data set by --data and --data-root"
        raise InputError("--from annotations", "takes the training annotations of a data set", cure)
    relations = derive_class_graph(options.train, refuse=False).relations
    return {
        name: dict(zip(zip(src.tolist(), dst.tolist(), strict=True), weight.tolist(), strict=True))
        for name, (src, dst, weight) in relations.items()
    }


def _from_ade20k(classes: Sequence[str], path: str, options: BuildOptions) -> Relations:
    root = _path("ade20k", path or options.root, "the folder of a release, --from ade20k=DIR")
    images = options.images
    if images is None and not path and options.data == "ade20k" and isinstance(options.train, AnnotatedImages):
        images = frozenset(Path(name).with_suffix("").as_posix() for name in options.train.file_names)
    return relate_by_ade20k(classes, root, options.min_count, images)


def _from_visual_genome(classes: Sequence[str], path: str, options: BuildOptions) -> Relations:
    file = _path("visual-genome", path or options.root, "relationships.json, --from visual-genome=FILE")
    images = options.images
    if images is None and not path and options.data == "vg" and isinstance(options.train, AnnotatedImages):
        images = frozenset(map(str, options.train.image_ids.tolist()))
    if images is None:
        log.info("visual-genome: all images count, held-out ones among them, unless --images names those to learn from")
    return relate_by_predicates(classes, file, options.predicates, options.min_count, images)


def _from_wordnet(classes: Sequence[str], path: str, options: BuildOptions) -> Relations:
    nouns = Nouns(Path(path) if path else None)
    senses = choose_senses(classes, nouns, read_senses(options.senses))
    absent = [name for name, key in zip(classes, senses.keys, strict=True) if key is None]
    if absent:
        shown = ", ".join(absent[:10]) + (", ..." if len(absent) > 10 else "")
        log.info("wordnet: %d of %d names have no sense: %s", len(absent), len(classes), shown)
    if options.write_senses:
        files.write(options.write_senses, senses_text(classes, nouns, senses))
    return relate_by_wordnet(nouns, senses)


def _from_names(classes: Sequence[str], path: str, options: BuildOptions) -> Relations:
    if path:
        raise InputError("--from names", "reads no file", f"leave out {path!r}")
    return relate_names(classes)


def _from_word_vectors(classes: Sequence[str], path: str, options: BuildOptions) -> Relations:
    file = _path("word-vectors", path, "a file of word vectors, --from word-vectors=FILE")
    embeddings = name_vectors(file, classes)
    if embeddings.missing:
        log.info("%s: %s", file, embeddings.report())
    return relate_by_similarity(embeddings.vectors, options.neighbours)


def _path(name: str, path: str, what: str) -> Path:
    if not path:
        raise InputError(f"--from {name}", "names no path", f"give {what}")
    return Path(path)


SOURCES: dict[str, Callable[[Sequence[str], str, BuildOptions], Relations]] = {
    "annotations": _from_annotations,
    "ade20k": _from_ade20k,
    "visual-genome": _from_visual_genome,
    "wordnet": _from_wordnet,
    "names": _from_names,
    "word-vectors": _from_word_vectors,
}


# ------------------------------------------------------------------------------------------------- lists in files


def read_classes(path: Path) -> list[str]:
    """Read the names of classes.

    Args:
        path: A text file with a name a line, or JSON: a list of names, an object with such a list as `classes` (a class
            graph is one), or COCO's annotations, whose categories count in the order of their ids.

    Returns:
        The names, in order.

    Raises:
        InputError: The file cannot be read, is none of these, or has a name twice.
    """
    cure = "give a text file with a name a line, or JSON with a list of names"
    text = _read(path, cure)
    if text.lstrip()[:1] in ("[", "{"):
        try:
            data = json.loads(text)
            if isinstance(data, dict) and "categories" in data:
                rows = data["categories"]
                order = np.argsort(integers(rows, "id", path, "category"), kind="stable")
                data = [rows[i]["name"] for i in order]
            names = data["classes"] if isinstance(data, dict) else data
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise InputError(path, f"holds no names of classes ({error})", cure) from None
        if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
            raise InputError(path, "its classes are no list of names", cure)
    else:
        names = [line.strip() for line in text.splitlines() if line.strip()]
    twice = next((name for i, name in enumerate(names) if name in names[:i]), None)
    if twice is not None or not names:
        raise InputError(path, "has no name" if not names else f"has the name {twice!r} twice", cure)
    return names


def read_images(path: Path) -> frozenset[str]:
    """Names of images, without folders and endings, from a text file with one a line; InputError for none."""
    cure = "give a text file with an image a line: ADE20K's file names, Visual Genome's image ids"
    lines = [line.strip() for line in _read(path, cure).splitlines()]
    names = frozenset(Path(line).stem for line in lines if line)
    if not names:
        raise InputError(path, "names no image", cure)
    return names


def _read(path: Path, cure: str) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(path, f"cannot be read ({getattr(error, 'strerror', None) or error})", cure) from None
