"""`irnet demo`: from nothing to the page that compares the four variants."""

import argparse
from pathlib import Path

from .. import config as settings
from .. import options as shared

HELP = "generate scenes, train all four variants, compare them on one HTML page"
# The demonstration makes its data, and trains every variant from random weights.
OWN = ("data.name", "data.root", "model.variant", "train.init_from")


def small() -> settings.Config:
    """The small settings, with as many steps as show the differences in a few minutes."""
    config = settings.small()
    config.train.steps = 250
    return config


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of this command."""
    parser.add_argument("--output-dir", default="runs/demo", help="the folder of scenes, runs and the page")
    shared.add_scene_counts(parser)
    shared.add_device(parser)
    shared.add_settings(parser, small(), without=OWN)


def run(options: argparse.Namespace) -> None:
    """Make the page, or finish what an interrupted call has begun."""
    from ..engine.build import choose_device
    from ..engine.run_folder import locked
    from ..experiments.demo import demo

    shared.refuse_several("demo")
    config, output = shared.read_settings(options, small()), Path(options.output_dir)
    with locked(output):
        demo(output, config, choose_device(options.device), options.train_scenes, options.val_scenes)
