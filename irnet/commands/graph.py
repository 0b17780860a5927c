"""`irnet graph build` and `irnet graph show`: class graphs that are made, and class graphs that are looked at."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from .. import config as settings
from .. import options as shared
from ..errors import InputError, check_bounds

if TYPE_CHECKING:
    from ..class_graphs.format import ClassGraph

HELP = "build a class graph from annotations, WordNet, names or word vectors, or show one"
SOURCES = (
    "annotations (common supercategories, classes in one image), names (left and right, plural), ade20k=DIR, "
    "visual-genome=FILE, wordnet=DIR, word-vectors=FILE; several combine. Default: the class graph that training takes"
)
PICTURES = (".png", ".svg", ".pdf", ".jpg")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the two commands, each with its options."""
    command = shared.subcommands(parser, "build|show")

    sub = command("build", build, "build the class graph of a data set, from one source or several")
    sub.add_argument("--from", dest="sources", action="append", default=[], metavar="SOURCE", help=SOURCES)
    sub.add_argument("--classes", metavar="FILE", help="names of the classes, in place of a data set: text or JSON")
    sub.add_argument("--output", metavar="JSON", help="write the class graph into this file")
    sub.add_argument("--show", type=int, default=5, metavar="N", help="strongest edges to print per relation")
    sub.add_argument("--predicates", type=int, default=20, metavar="N", help="most frequent ones of Visual Genome")
    sub.add_argument(
        "--min-count", type=int, default=1, metavar="N", help="leave out what ADE20K or Visual Genome has less often"
    )
    sub.add_argument("--neighbours", type=int, default=5, metavar="K", help="of each class by word vectors")
    sub.add_argument(
        "--sense", action="append", default=[], metavar="NAME=SENSE", help="such as toaster=toaster.n.02; or a file"
    )
    sub.add_argument("--write-senses", default="", metavar="FILE", help="the senses that WordNet was taken in")
    sub.add_argument("--images", metavar="FILE", help="take of ADE20K or Visual Genome these alone, one a line")
    shared.add_settings(sub, settings.Config(), only=("data.name", "data.root", "data.max_regions"))
    shared.tell_defaults(sub)

    sub = command("show", show, "print what a class graph holds and the neighbours of a class, and draw them")
    sub.add_argument("graph", metavar="FILE", help="a class graph")
    sub.add_argument("name", nargs="?", metavar="CLASS", help="show the neighbours of this class")
    sub.add_argument("--output", metavar="PNG", help="draw the neighbours into this file: png, svg, pdf or jpg")
    sub.add_argument("--show", type=int, default=20, metavar="N", help="strongest edges per relation and direction")
    shared.tell_defaults(sub)


def build(options: argparse.Namespace) -> None:
    """Print the edges, and write the class graph where a file is named."""
    from ..class_graphs.format import save_class_graph, some_edges

    for name in ("show", "predicates", "min_count", "neighbours"):
        check_bounds(f"--{name.replace('_', '-')}", getattr(options, name), 0 if name == "show" else 1)
    _check_use(options)
    graph = _build(options)
    for name, (src, dst, weight) in graph.relations.items():
        print(f"{name}: {len(src)} edges")
        for edge in weight.argsort(descending=True, stable=True)[: options.show].tolist():
            print(f"  {graph.classes[src[edge]]} -> {graph.classes[dst[edge]]}  {weight[edge]:.3f}")
    some_edges(graph)
    if options.output:
        save_class_graph(graph, options.output)
        print(options.output)


def _check_use(options: argparse.Namespace) -> None:
    """InputError for an option that none of the sources reads."""
    from ..class_graphs.sources import BuildOptions

    default = BuildOptions()
    readers = {
        "predicates": (default.predicates, "visual-genome"),
        "min_count": (default.min_count, "ade20k and visual-genome"),
        "images": (None, "ade20k and visual-genome"),
        "neighbours": (default.neighbours, "word-vectors"),
        "sense": ([], "wordnet"),
        "write_senses": ("", "wordnet"),
    }
    named = [source.partition("=")[0] for source in options.sources]
    for name, (value, sources) in readers.items():
        if getattr(options, name) != value and not any(source in named for source in sources.split(" and ")):
            cure = f"add a --from {sources.replace(' and ', ' or ')}, or leave it out"
            raise InputError(f"--{name.replace('_', '-')}", f"counts for {sources} alone", cure)


def _build(options: argparse.Namespace) -> "ClassGraph":
    from ..class_graphs.sources import BuildOptions, build_class_graph, read_classes, read_images
    from ..data.registry import open_dataset
    from ..engine.build import class_graph

    config = shared.read_settings(options)
    if options.classes and not options.sources:
        raise InputError("--classes", "no source is named", "give one by --from, such as --from wordnet")
    train = None if options.classes else open_dataset(config.data, "train")
    if train is not None and not options.sources:
        return class_graph(config.data, train, refuse=False)
    classes = train.classes if train is not None else read_classes(Path(options.classes))
    images = read_images(Path(options.images)) if options.images else None
    wants = BuildOptions(
        data="" if train is None else config.data.name,
        root=str(train.root) if train is not None else config.data.root,
        train=train,
        predicates=options.predicates,
        min_count=options.min_count,
        neighbours=options.neighbours,
        senses=options.sense,
        write_senses=options.write_senses,
        images=images,
    )
    return build_class_graph(options.sources, classes, wants)


def show(options: argparse.Namespace) -> None:
    """Print what a class graph holds, then the neighbours of the class; draw them where a file is named."""
    from itertools import groupby

    from tabulate import tabulate

    from ..class_graphs.format import read_class_graph
    from ..class_graphs.statistics import index_of, isolated, neighbours, statistics

    check_bounds("--show", options.show, 1)
    if options.output and (options.name is None or Path(options.output).suffix.lower() not in PICTURES):
        trouble = "draws the neighbours of a class" if options.name is None else "is no picture's name"
        raise InputError(f"--output {options.output}", trouble, f"name a class, and a file in {', '.join(PICTURES)}")
    graph = read_class_graph(options.graph)
    name = None if options.name is None else graph.classes[index_of(graph, options.name)]
    print(f"{options.graph}: {len(graph.classes)} classes, {len(isolated(graph))} of them without an edge")
    rows = [
        (row.name, row.edges, row.sources, row.destinations, row.most, *(row.weights or ("", "", "")))
        for row in statistics(graph)
    ]
    headers = ("relation", "edges", "from", "to", "most to one", "least weight", "median", "largest")
    print(tabulate(rows, headers, floatfmt=".3g"))
    if name is None:
        return
    arrows = []
    print(f"\n{name}:" + ("" if (all_edges := neighbours(graph, options.name)) else " no edge"))
    for (relation, outgoing), group in groupby(all_edges, key=lambda edge: (edge.relation, edge.outgoing)):
        edges = list(group)
        print(f"  {name} {relation} ..." if outgoing else f"  ... {relation} {name}")
        for edge in edges[: options.show]:
            print(f"    {edge.name}  {edge.weight:.3f}")
            arrows.append((relation, edge.name, edge.weight, outgoing))
        if len(edges) > options.show:
            print(f"    and {len(edges) - options.show} more")
    if options.output:
        from ..report.class_graph import draw_neighbourhood

        draw_neighbourhood(Path(options.output), name, arrows)
        print(options.output)
