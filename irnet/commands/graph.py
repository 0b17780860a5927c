"""`irnet graph`: the class graph of a data set."""

import argparse

from .. import config as settings
from .. import options as shared
from ..errors import check_bounds

HELP = "show the class graph of a data set, or write it as JSON"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of this command."""
    parser.add_argument("--show", type=int, default=5, help="strongest edges to print per relation")
    parser.add_argument("--output", metavar="JSON", help="write the graph into this file")
    shared.add_settings(parser, settings.Config(), only=("data.name", "data.root", "data.max_regions"))


def run(options: argparse.Namespace) -> None:
    """Print the edges, and write the graph where a file is named."""
    from ..class_graphs.format import save_class_graph, some_edges
    from ..data.registry import open_dataset
    from ..engine.build import class_graph

    check_bounds("--show", options.show, 0)
    config = shared.read_settings(options)
    graph = class_graph(config.data, open_dataset(config.data, "train"), refuse=False)
    for name, (src, dst, weight) in graph.relations.items():
        print(f"{name}: {len(src)} edges")
        for edge in weight.argsort(descending=True, stable=True)[: options.show].tolist():
            print(f"  {graph.classes[src[edge]]} -> {graph.classes[dst[edge]]}  {weight[edge]:.3f}")
    some_edges(graph)
    if options.output:
        save_class_graph(graph, options.output)
        print(options.output)
