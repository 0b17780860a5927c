"""`irnet train`: one run in its folder, or its continuation."""

import argparse
import logging
import os
from pathlib import Path

from .. import config as settings
from .. import options as shared

HELP = "train a model; resumes to the same bits"
log = logging.getLogger("irnet")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of this command."""
    parser.add_argument("--output-dir", help="the run's folder: checkpoints, log, metrics, results, pictures")
    parser.add_argument("--small", action="store_true", help="the small model for CPUs, in place of the paper's")
    parser.add_argument(
        "--resume", nargs="?", const="auto", metavar="auto|PATH", help="go on from a run folder or checkpoint"
    )
    shared.add_memory(parser, "of a step: decides in how many parts a batch is worked on (see irnet plan)")
    shared.add_print_config(parser)
    shared.add_device(parser)
    shared.add_settings(parser, settings.Config(), settings.small())
    parser.set_defaults(usage_error=parser.error)


def run(options: argparse.Namespace) -> None:
    """Train, and print the table of results."""
    if options.output_dir is None and (options.resume == "auto" or not options.print_config):
        options.usage_error("the following arguments are required: --output-dir")
    if options.print_config and options.memory is not None:  # a plan reads the data
        options.usage_error("argument --print-config: not allowed with argument --memory")
    with shared.joined(options) as device:
        train_as(options, device)


def train_as(options: argparse.Namespace, device: str) -> None:
    """Train on a device."""
    resume, base = find_resumed(options)
    config = shared.read_settings(options, resume.config if resume else base)
    if options.print_config:
        print(settings.dump(config), end="")
        return
    from ..engine import checkpoint, distributed, evaluate
    from ..engine.build import choose_device
    from ..engine.fit import read_memory
    from ..engine.train import train

    output = Path(options.output_dir)
    memory = None if options.memory is None else read_memory(options.memory)
    results = train(config, output, choose_device(device), resume, memory=memory)
    if distributed.rank():
        return
    print(evaluate.table_text(results))
    written = ("results.json", "per_class.csv", "confusion.csv", "metrics.jsonl", "curve.png", "log.txt", "vis/")
    print(f"{output}: {', '.join(name for name in written if (output / name).exists())}")
    print(output / "checkpoints" / checkpoint.LAST)


def find_resumed(options: argparse.Namespace) -> tuple:
    """The checkpoint to go on from, and the settings of a run that was stopped before its first; None where none is.

    Of several processes rank 0 says which, and nothing is written before all have read it.
    """
    if not (options.resume or shared.several() or shared.restarted()):
        return None, None
    from ..engine import checkpoint, distributed

    (restarted,) = distributed.highest([shared.restarted()])  # not every machine's torchrun counts all restarts
    resume, base = _find_resumed(options, restarted) if distributed.rank() == 0 else (None, None)
    source, base = distributed.from_first(lambda: (resume and resume.source, base))
    if source is not None and resume is None:
        resume = checkpoint.load(source)
    if resume is not None:
        trouble, cure = "is of another step than on rank 0", "put the run's folder where all machines see the same"
        distributed.check_alike(resume.step, source, trouble, cure)
    distributed.wait()
    return resume, base


def _find_resumed(options: argparse.Namespace, restarted: bool) -> tuple:
    from ..engine import checkpoint

    if restarted and checkpoint.exists(Path(options.output_dir or "")):  # the run that is to be brought back
        return checkpoint.find(options.output_dir), None
    if not options.resume:
        return None, None
    if options.resume != "auto":
        return checkpoint.find(options.resume), None
    output = Path(options.output_dir)
    if checkpoint.exists(output):
        return checkpoint.find(output), None
    if os.path.exists(output / "config.yaml"):
        log.warning("%s holds no checkpoint to go on from: the run starts anew with its settings", output)
        return None, settings.load(output / "config.yaml")
    log.warning("%s holds no run to go on with: a new one starts", output)
    return None, None
