"""`irnet data scenes` and `irnet data check`: data sets that are generated, and data sets that are looked at."""

import argparse
from pathlib import Path

from .. import config as settings
from .. import options as shared
from ..errors import InputError

HELP = "generate scenes, or check a data set and count what is in it"
CHECKED = ("data.name", "data.root", "data.max_regions", "train.workers")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the two commands, each with its options."""
    command = shared.subcommands(parser, "scenes|check")

    sub = command("scenes", generate_scenes, "generate a set of scenes")
    sub.add_argument("--output-dir", default="data/scenes", help="the folder that scenes are written into")
    shared.add_scene_counts(sub)
    sub.add_argument("--size", type=int, default=192, help="pixels of a scene's side")
    sub.add_argument("--seed", type=int, default=0, help="another seed gives other scenes")
    shared.tell_defaults(sub)

    sub = command("check", check_data, "check the data set of the settings and count what is in it")
    sub.add_argument("--images", action="store_true", help="decode every image, where otherwise its header is read")
    sub.add_argument("--small", action="store_true", help="the settings of train --small, in place of the paper's")
    shared.add_settings(sub, settings.Config(), settings.small(), only=CHECKED)
    shared.tell_defaults(sub)


def generate_scenes(options: argparse.Namespace) -> None:
    """Write a set of scenes."""
    from ..scenes.generator import generate

    facts = generate(Path(options.output_dir), options.train_scenes, options.val_scenes, options.size, options.seed)
    for split in ("train", "val"):
        bounds = facts[split]["bounds"]
        print(
            f"{split}: {facts[split]['images']} images; seeing only a box's own view, nobody can pass "
            f"{100 * bounds['instance_accuracy']:.2f}% accuracy, {100 * bounds['class_ap']:.2f}% class AP"
        )


def check_data(options: argparse.Namespace) -> None:
    """Print what a data set holds. InputError where training would refuse it, after all findings are printed."""
    from ..engine.check import check

    findings = check(shared.read_settings(options), options.images, print)
    for error in findings:
        print(f"  {' '.join(str(error).splitlines())}")
    if findings:
        first, count = findings[0], len(findings)
        listed = f" (the first of {count} findings, all listed above)" if count > 1 else ""
        raise InputError(first.where, first.trouble + listed, first.cure)
