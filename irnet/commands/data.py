"""`irnet data scenes`, `check` and `convert`: data sets that are generated, looked at, and written as COCO."""

import argparse
from pathlib import Path

from .. import config as settings
from .. import options as shared
from ..errors import InputError

HELP = "generate scenes, check a data set and count what is in it, or write it as COCO"
CONVERTED = ("data.name", "data.root")
CHECKED = ("data.name", "data.root", "data.max_regions", "train.workers")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the commands, each with its options."""
    command = shared.subcommands(parser, "scenes|check|convert")

    sub = command("scenes", generate_scenes, "generate a set of scenes")
    sub.add_argument("--output-dir", default="data/scenes", help="the folder that scenes are written into")
    shared.add_scene_counts(sub)
    sub.add_argument("--size", type=int, help="pixels of a scene's side; 192, and 256 with --apart, if not given")
    sub.add_argument(
        "--apart",
        action="store_true",
        help="scenes in which what settles one kind of region tells little of the others",
    )
    sub.add_argument("--seed", type=int, default=0, help="another seed gives other scenes")
    shared.tell_defaults(sub)

    sub = command("check", check_data, "check the data set of the settings and count what is in it")
    sub.add_argument("--images", action="store_true", help="decode every image, where otherwise its header is read")
    sub.add_argument("--sheet", metavar="FILE", help="draw images with their regions into this picture")
    sub.add_argument("--counts", metavar="FILE", help="write how many regions each class has into this CSV file")
    sub.add_argument("--small", action="store_true", help="the settings of train --small, in place of the paper's")
    shared.add_settings(sub, settings.Config(), settings.small(), only=CHECKED)
    shared.tell_defaults(sub)

    sub = command("convert", convert_data, "write the data set of the settings in COCO's format")
    sub.add_argument("--output-dir", required=True, metavar="DIR", help="the folder that it is written into")
    sub.add_argument(
        "--images", default="link", choices=("link", "copy", "none"), help="what is put beside annotations"
    )
    shared.add_settings(sub, settings.Config(), only=CONVERTED)
    shared.tell_defaults(sub)


def generate_scenes(options: argparse.Namespace) -> None:
    """Write a set of scenes."""
    from ..scenes.generator import World, generate

    size = (256 if options.apart else 192) if options.size is None else options.size
    world = World(size, apart=options.apart)
    facts = generate(Path(options.output_dir), options.train_scenes, options.val_scenes, options.seed, world)
    for split in ("train", "val"):
        bounds = facts[split]["bounds"]
        print(
            f"{split}: {facts[split]['images']} images; seeing only a box's own view, nobody can pass "
            f"{100 * bounds['instance_accuracy']:.2f}% accuracy, {100 * bounds['class_ap']:.2f}% class AP"
        )


def check_data(options: argparse.Namespace) -> None:
    """Print what a data set holds. InputError where training would refuse it, after all findings are printed."""
    from ..engine import inventory
    from ..engine.check import check

    def look(opened: dict) -> None:
        if options.counts and opened:
            inventory.write_counts(opened, options.counts)
        if options.sheet and opened:
            inventory.write_sheet(opened, options.sheet)

    findings = check(shared.read_settings(options), options.images, print, look)
    for error in findings:
        print(f"  {' '.join(str(error).splitlines())}")
    if findings:
        first, count = findings[0], len(findings)
        listed = f" (the first of {count} findings, all listed above)" if count > 1 else ""
        raise InputError(first.where, first.trouble + listed, first.cure)


def convert_data(options: argparse.Namespace) -> None:
    """Write a data set in COCO's format, and print the files."""
    from ..engine.convert import convert

    convert(shared.read_settings(options), Path(options.output_dir), options.images, print)
