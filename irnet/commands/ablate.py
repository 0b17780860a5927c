"""`irnet ablate`: what each part of a run is worth, and what missing boxes cost it."""

import argparse
from pathlib import Path

from .. import config as settings
from .. import options as shared
from ..errors import check_bounds

HELP = "train a run without each of its parts, with several seeds; tabulate what they are worth"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of this command."""
    parser.add_argument("--output-dir", default="runs/ablations", help="the folder of the runs and their table")
    parser.add_argument("--small", action="store_true", help="the small model for CPUs, in place of the paper's")
    parser.add_argument("--seeds", type=int, default=1, metavar="N", help="runs of each row, from train.seed on")
    parser.add_argument(
        "--variants", default="", metavar="LIST", help="names of rows, as base,no-spatial,conv; all if not given"
    )
    parser.add_argument(
        "--missing-steps",
        type=int,
        default=10,
        metavar="N",
        help="steps from 0 to 100%% of the other boxes missing at test time; 0: no curve",
    )
    shared.add_device(parser)
    shared.add_settings(parser, settings.Config(), settings.small())


def run(options: argparse.Namespace) -> None:
    """Train what is missing, write the files, print the table."""
    from ..engine.build import choose_device
    from ..engine.run_folder import locked
    from ..experiments.ablations import ablate, table_text

    check_bounds("--seeds", options.seeds, 1, 1000)
    check_bounds("--missing-steps", options.missing_steps, 0, 1000)
    shared.refuse_several("ablate")
    config, output = shared.read_settings(options), Path(options.output_dir)
    with locked(output):
        device = choose_device(options.device)
        record = ablate(output, config, device, options.variants, options.seeds, options.missing_steps)
    print(table_text(record))
    files = "ablations.md, ablations.json" + (", missing.png, missing.svg" if "missing" in record else "")
    print(f"{output}: {files}, a folder of each run")
