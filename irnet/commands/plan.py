"""`irnet plan`: how much memory a step of training takes, and the micro-batch that fits into what there is."""

import argparse
import dataclasses
from operator import attrgetter
from pathlib import Path
from typing import TYPE_CHECKING

from .. import config as settings
from .. import options as shared
from ..errors import InputError, check_bounds

if TYPE_CHECKING:
    from ..engine.fit import Fit
    from ..engine.memory import Scene

HELP = "plan the memory of a training step; needs neither data nor a GPU"
SETTINGS = (
    *("model.variant", "data.name", "data.root", "data.max_regions"),
    *("train.batch_size", "train.grad_accum_steps", "train.amp", "train.grad_checkpointing"),
    "train.parallel",
)
PRECISIONS = {"off": "float32", "bf16": "bfloat16", "fp16": "float16"}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of this command."""
    shared.add_memory(parser, "that there is: look for the largest micro-batch that fits")
    size = "of images as the model takes them; else the largest of the data, that of a shipped --config, or 600x1000"
    parser.add_argument("--size", metavar="HxW", help=size)
    parser.add_argument("--regions", type=int, metavar="N", help="of an image; else the most that the data has, or 64")
    parser.add_argument("--classes", type=int, metavar="N", help="their number; else the data's, or 80")
    parser.add_argument("--processes", type=int, default=1, metavar="N", help="plan for one of N that share the batch")
    parser.add_argument("--measure", action="store_true", help="also run a step on this machine, and compare")
    plain = "say what a further image costs, beside the plain path: reference operators, float32, no checkpointing"
    parser.add_argument("--compare", action="store_true", help=plain)
    parser.add_argument("--small", action="store_true", help="the small model for CPUs, in place of the paper's")
    kinds = ("auto", "cpu", "cuda")
    parser.add_argument("--device", default="auto", choices=kinds, help="to plan for; auto: a GPU where there is one")
    shared.add_settings(parser, settings.Config(), settings.small(), only=SETTINGS)


def run(options: argparse.Namespace) -> None:
    """Print the plan as a table, and the settings as `irnet train` takes them."""
    config = shared.read_settings(options)
    for name in ("regions", "classes"):
        check_bounds(f"--{name}", getattr(options, name), 1, 10**6)
    check_bounds("--processes", options.processes, 1, 10**6)
    if options.processes > 1 and (options.measure or options.compare):
        raise InputError("--processes", "is a plan alone, of which nothing is measured or compared", "leave it out")
    _check_data(options, config)
    import torch

    from ..engine import fit
    from ..engine.memory import measured

    memory = None if options.memory is None else fit.read_memory(options.memory)
    gpu = options.device == "cuda" or (options.device == "auto" and torch.cuda.is_available())
    scene = _scene(options, config)
    print(_title(config, scene, gpu))
    if memory is None:
        plan = fit.fit_of(config, scene, gpu, options.processes)
    else:
        plan = _search(config, scene, memory, gpu, options.processes)
    real = None
    if options.measure:
        from ..engine.build import choose_device

        real = measured(plan.config, scene, choose_device("cuda" if gpu else "cpu"))
    print(_table(plan, real), end="\n\n")
    if options.compare:
        print(_comparison(plan, scene, gpu), end="\n\n")
    print(plan.words)


def _check_data(options: argparse.Namespace, config: settings.Config) -> None:
    """InputError where settings of the data are given, but no data whose images they could change."""
    if config.data.root:
        return
    base = settings.small() if options.small else settings.Config()
    if _is_shipped(options.config):  # its data set is none that the user gave
        base = settings.load(options.config, base)
    for key in (key for key in settings.fields_of(config) if key.startswith("data.") and key != "data.root"):
        value = attrgetter(key)
        if getattr(options, key, None) is not None or value(config) != value(base):
            cure = f"name the folder of the data set, or leave out {key} (see --size, --regions and --classes)"
            raise InputError("--data-root", f"is not given, and {key} is for data alone", cure)


def _is_shipped(path: str | None) -> bool:
    """Whether --config names a file that comes with irnet, not one of the user's."""
    return path in settings.shipped() and not Path(path).is_file()


def _scene(options: argparse.Namespace, config: settings.Config) -> "Scene":
    """What the images look like: as the options say, else as in the data, as of a shipped file, or as in COCO."""
    from ..data.registry import open_dataset
    from ..engine import fit
    from ..engine.memory import Scene

    if config.data.root:
        scene = fit.scene_of(open_dataset(config.data, "train", require_images=False), config)
    else:
        height, width = (config.data.short_side, config.data.long_side) if _is_shipped(options.config) else (600, 1000)
        scene = Scene(height, width, (64,), 80)
    if options.size:
        height, width = _size(options.size)
        scene = dataclasses.replace(scene, height=height, width=width)
    if options.regions:
        scene = dataclasses.replace(scene, regions=(options.regions,))
    if options.classes:
        scene = dataclasses.replace(scene, classes=options.classes, edges=None)
    if scene.edges is None and config.model.variant in ("global", "full"):
        scene = dataclasses.replace(scene, edges=fit.made_up_edges(scene.classes))
    return scene


def _size(text: str) -> tuple[int, int]:
    height, cross, width = text.lower().partition("x")
    if not (cross and height.isdecimal() and width.isdecimal() and 0 < int(height) * int(width) <= 10**9):
        raise InputError("--size", f"{text!r} is no size of an image", "write HxW in pixels, such as 600x1000")
    return int(height), int(width)


def _search(config: settings.Config, scene: "Scene", memory: int, gpu: bool, processes: int) -> "Fit":
    """Print what fits in every way to take less memory; returns the first that does. InputError if none does."""
    from ..engine import fit

    rows = [("precision", "checkpointing", "micro-batch", "parts", "peak, MiB")]
    plans = fit.search(config, scene, memory, gpu, every=True, processes=processes)
    for plan in plans:
        train, size = plan.config.train, plan.footprint.total
        micro = str(plan.micro_batch) if size <= memory else "none fits"
        checkpointing = "on" if train.grad_checkpointing else "off"
        rows.append((PRECISIONS[train.amp], checkpointing, micro, str(train.grad_accum_steps), _mib(size)))
    print(_aligned(rows), end="\n\n")
    fitting = [plan for plan in plans if plan.footprint.total <= memory]
    if fitting:
        return fitting[0]
    raise fit.too_little(memory, scene, plans)


def _title(config: settings.Config, scene: "Scene", gpu: bool) -> str:
    images = _counted(config, config.train.batch_size)
    regions = f"{scene.regions[0]} regions" if len(scene.regions) == 1 else f"at most {scene.regions[0]} regions"
    step = f"{images} of {scene.height} x {scene.width} pixels with {regions} a step"
    where = "a GPU, without what its driver and libraries take" if gpu else "a CPU"
    return f"{config.model.variant} on {config.model.backbone}, {scene.classes} classes, {step}, on {where}\n"


def _counted(config: settings.Config, images: int) -> str:
    """A number of images for a line, of which a budget of pixels may let in fewer."""
    return f"{'at most ' * bool(config.train.max_batch_pixels)}{images} image{'s' * (images > 1)}"


def _table(plan: "Fit", real: int | None) -> str:
    """The peak by category and, below the total, what was measured."""
    footprint, train = plan.footprint, plan.config.train
    checkpointing = ", checkpointing" if train.grad_checkpointing else ""
    at_once = f"{_counted(plan.config, plan.micro_batch)} at a time"
    of_one = f" in one of {plan.processes} processes" if plan.processes > 1 else ""
    rows = [(f"peak of a step{of_one}, {at_once}, {PRECISIONS[train.amp]}{checkpointing}", "MiB")]
    rows += [(category, _mib(size)) for category, size in footprint.bytes.items()]
    rows += [(f"total, within {footprint.operator}", _mib(footprint.total))]
    if real is not None:
        rows += [("measured", _mib(real)), ("the plan is off by", f"{100 * (footprint.used / real - 1):+.2f}%")]
    return _aligned(rows)


def _comparison(plan: "Fit", scene: "Scene", gpu: bool) -> str:
    """What a further image costs with the settings of the plan, and on the plain path."""
    from ..engine.memory import cost, plain_path

    images = max(4, plan.micro_batch)
    own = cost(plan.config, scene, gpu, images)
    with plain_path(plan.config) as config:
        plain = cost(config, scene, gpu, images)
    ratios = [f"{a / b:.3f}" for a, b in ((own.bytes, plain.bytes), (own.flops, plain.flops))]
    rows = [(f"a further image beside {images}", "these settings", "the plain path", "ratio")]
    rows += [("MiB", _mib(own.bytes), _mib(plain.bytes), ratios[0])]
    rows += [("GFLOP", f"{own.flops / 1e9:,.1f}", f"{plain.flops / 1e9:,.1f}", ratios[1])]
    return _aligned(rows)


def _mib(size: int) -> str:
    return f"{size / 2**20:,.2f}"


def _aligned(rows: list[tuple[str, ...]]) -> str:
    """Rows of text in columns: the first to the left, the others to the right."""
    from tabulate import tabulate

    sides = ["left"] + ["right"] * (len(rows[0]) - 1)
    return tabulate(rows, tablefmt="plain", disable_numparse=True, colalign=sides)
