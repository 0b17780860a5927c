"""`irnet page`: a folder that shows what reasoning changed in a finished run, and why."""

import argparse
from pathlib import Path

from .. import options as shared
from ..errors import check_bounds

HELP = "write the page of a run: what reasoning corrected and broke, image by image, and why"
SETTINGS = ("data.name", "data.root", "train.batch_size", "train.workers", "train.limit_batches")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of this command."""
    parser.add_argument("checkpoint", metavar="RUN", help="a run folder or a checkpoint file")
    parser.add_argument("--best", action="store_true", help="the checkpoint with the best class AP, not the last")
    parser.add_argument("--output-dir", metavar="DIR", help="the page's folder; RUN/page if not given")
    most = "images that can be looked at, those in which reasoning corrected or broke most boxes; 0: all"
    parser.add_argument("--images", type=int, default=200, metavar="N", help=most)
    edges = "edges that are measured for every box whose answer reasoning changed; 0: none, which is faster"
    parser.add_argument("--edges", type=int, default=3, metavar="N", help=edges)
    other = "a run with another seed, whose results.json goes into the spread; may be given several times"
    parser.add_argument("--other-seed", action="append", default=[], metavar="RUN", help=other)
    shared.add_device(parser)
    shared.add_settings(parser, only=SETTINGS, default="as in the run's training")


def run(options: argparse.Namespace) -> None:
    """Evaluate the run and write its page."""
    from ..engine import checkpoint, run_page
    from ..engine.build import choose_device

    check_bounds("--images", options.images, 0)
    check_bounds("--edges", options.edges, 0, 100)
    shared.refuse_several("page")
    saved = checkpoint.find(options.checkpoint, checkpoint.BEST if options.best else checkpoint.LAST)
    config = shared.read_settings_of_run(options, saved.config)
    output = Path(options.output_dir or checkpoint.folder_of_run(options.checkpoint) / "page")
    device = choose_device(options.device)
    print(run_page.write(output, saved, config, device, options.images, options.edges, options.other_seed))
