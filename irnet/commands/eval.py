"""`irnet eval`: the results of a finished run on its held-out split."""

import argparse
import logging
from pathlib import Path

from .. import config as settings
from .. import options as shared
from ..errors import check_bounds

log = logging.getLogger("irnet")
HELP = "evaluate a run on its held-out split; writes results.json, per_class.csv and confusion.csv"
SETTINGS = ("data.name", "data.root", "train.batch_size", "train.workers", "train.limit_batches")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of this command."""
    shared.add_checkpoint(parser)
    parser.add_argument("--output-dir", help="where the files go; the run's folder if not given")
    parser.add_argument("--vis", type=int, default=0, metavar="N", help="draw the first N images into vis/")
    shared.add_memory(parser, "that there is: decides how many images go through the model together")
    shared.add_print_config(parser)
    shared.add_device(parser)
    shared.add_settings(parser, only=SETTINGS, default="as in the run's training")


def run(options: argparse.Namespace) -> None:
    """Evaluate, write the files, and print the results: of every prediction, of some classes, of some confusions."""
    with shared.joined(options) as device:
        evaluate_on(options, device)


def evaluate_on(options: argparse.Namespace, device_name: str) -> None:
    """Evaluate on a device."""
    from ..data.registry import open_dataset
    from ..engine import checkpoint, evaluate, fit, predict
    from ..engine.build import choose_device, restore_model, same_classes, some_regions
    from ..report.classes import classes_text

    check_bounds("--vis", options.vis, 0)
    saved = checkpoint.find(options.checkpoint, checkpoint.BEST if options.best else checkpoint.LAST)
    config = shared.read_settings_of_run(options, saved.config)
    if options.print_config:
        print(settings.dump(config), end="")
        return
    memory = None if options.memory is None else fit.read_memory(options.memory)
    device = choose_device(device_name)
    data = open_dataset(config.data, "val")
    same_classes(data.classes, saved.classes, data.path)
    some_regions(data)
    model = restore_model(saved.config.model, len(saved.classes), saved.model, saved.source).to(device)
    at_once = evaluate.images_at_once(data, config)
    if memory is not None:
        scene = fit.scene_of(data, config, model)
        at_once = fit.evaluated_at_once(config, scene, memory, device.type == "cuda")
        log.info("planned for %s of memory: %d images at once", fit.size_text(memory), at_once)
    with evaluate.progress_of(data, config) as progress:
        scores = evaluate.collect(model, evaluate.held_out(data, config, device, at_once), device, progress)
    if scores is None:  # rank 0 has them
        return
    results = evaluate.results(model, saved.step, data.split, scores)
    folder = Path(options.output_dir or checkpoint.folder_of_run(options.checkpoint))
    evaluate.write(folder, results, scores, data.classes)
    print(evaluate.table_text(results), classes_text(scores, data.classes), sep="\n\n", end="\n\n")
    print(", ".join(str(folder / name) for name in ("results.json", "per_class.csv", "confusion.csv")))
    if options.vis > 0:
        predict.draw(folder / "vis", model, data, config.data, options.vis)
        print(folder / "vis")
