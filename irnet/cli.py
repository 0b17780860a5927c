"""The command line, `irnet COMMAND`: reads options, prints, does no work.

Bad input is one line on standard error and exit code 2.
"""

import argparse
import copy
import io
import logging
import os
import re
import sys
from collections.abc import Callable
from itertools import pairwise
from operator import attrgetter
from pathlib import Path

from . import __version__
from .errors import InputError, check_bounds, explain
from .interrupts import Stopped, raising
from .options import as_text, tell_defaults
from .progress import Progress, tracked

_SETTING = re.compile(r"(model|loss|data|train)\.\w+=")
log = logging.getLogger("irnet")


def main(arguments: list[str] | None = None) -> int:
    """Run one command; returns the exit code.

    arguments  the words behind `irnet`; None takes the program's own, which ends with the command
    """
    words = sys.argv[1:] if arguments is None else list(arguments)
    # GNU OpenMP's threads spin while they wait, and on a busy machine take the cores from those that work. It reads the
    # variable when torch is loaded. A benchmark measures what a program that imports irnet gets.
    if words[:1] != ["bench"] and not {"GOMP_SPINCOUNT", "KMP_BLOCKTIME"} & os.environ.keys():
        os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    try:
        with raising(ends=arguments is None):
            return _run(words)
    except BrokenPipeError:  # the reader of our output, such as head, has gone
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except Exception as error:
        known = explain(error)
        if known is None:
            raise
        print(f"irnet: {' '.join(str(known).splitlines())}", file=sys.stderr)
        return 2
    except Stopped as error:
        print(f"irnet: {error}", file=sys.stderr)
        return 128 + error.number


def _run(words: list[str]) -> int:
    for at, (word, following) in enumerate(pairwise(words)):
        if word == "--resume" and _SETTING.match(following) and not os.path.exists(following):
            words[at] = "--resume=auto"  # argparse would take KEY=VALUE for the PATH
    for stream in (sys.stdout, sys.stderr):  # a class name that the terminal's encoding lacks ends no command
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    parser = _parser(words)
    options, rest = parser.parse_known_args(words)
    if rest:  # argparse takes KEY=VALUE words from one place only; here they may stand between options
        if not hasattr(options, "overrides") or any(word.startswith("-") or "=" not in word for word in rest):
            parser.error(f"unrecognized arguments: {' '.join(rest)}")
        options.overrides += rest
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    with Progress(" ".join(words[:2]) if words[0] == "bench" else words[0]):
        return options.run(options) or 0


def _demo(options: argparse.Namespace) -> None:
    from .demo import demo
    from .engine.build import choose_device
    from .engine.run_folder import locked

    config, output = _config(options, small=True), Path(options.output_dir)
    with locked(output):
        demo(output, config, choose_device(options.device), options.train_scenes, options.val_scenes)


def _train(options: argparse.Namespace) -> None:
    from . import config as settings
    from .engine import checkpoint, evaluate
    from .engine.build import choose_device
    from .engine.train import train

    output, device = Path(options.output_dir), choose_device(options.device)
    resume = base = None
    if options.resume == "auto":
        if checkpoint.exists(output):
            resume = checkpoint.find(output)
        elif os.path.exists(output / "config.yaml"):  # stopped before its first checkpoint
            base = settings.load(output / "config.yaml")
            log.warning("%s holds no checkpoint to go on from: the run starts anew with its settings", output)
        else:
            log.warning("%s holds no run to go on with: a new one starts", output)
    elif options.resume:
        resume = checkpoint.find(options.resume)
    # A copy: the checkpoint's own settings are compared with what the options make of them.
    config = _config(options, base=copy.deepcopy(resume.config) if resume else base)
    print(evaluate.table_text(train(config, output, device, resume)))
    print(f"{output}: results.json, per_class.csv, metrics.jsonl, log.txt, vis/")
    print(output / "checkpoints" / checkpoint.LAST)


def _eval(options: argparse.Namespace) -> None:
    from .engine import checkpoint, evaluate, predict
    from .engine.build import choose_device, open_dataset, restore_model, same_classes, some_regions

    check_bounds("--vis", options.vis, 0)
    saved = checkpoint.find(options.checkpoint, checkpoint.BEST if options.best else checkpoint.LAST)
    config, device = _config(options, base=copy.deepcopy(saved.config)), choose_device(options.device)
    _same_model(config, saved.config)
    data = open_dataset(config.data, "val")
    same_classes(data.classes, saved.classes, data.path)
    some_regions(data)
    model = restore_model(saved.config.model, len(saved.classes), saved.model, saved.source).to(device)
    with evaluate.progress_of(data, config) as progress:
        scores = evaluate.collect(model, evaluate.held_out(data, config, device), device, progress)
    results = evaluate.results(model, saved.step, data.split, scores)
    source = Path(options.checkpoint)
    folder = Path(options.output_dir or (source if source.is_dir() else source.parent))
    evaluate.write(folder, results, scores, data.classes)
    print(evaluate.table_text(results))
    print(f"{folder / 'results.json'}, {folder / 'per_class.csv'}")
    if options.vis > 0:
        predict.draw(folder / "vis", model, data, config.data, options.vis)
        print(folder / "vis")


def _predict(options: argparse.Namespace) -> None:
    import json

    from .data.boxes import boxes_of
    from .engine import checkpoint, predict
    from .engine.build import choose_device, restore_model
    from .report.draw import trail

    settings = [word for word in options.images if _SETTING.match(word) and not os.path.exists(word)]
    options.overrides += settings
    images = [Path(word) for word in options.images if word not in settings]
    saved = checkpoint.find(options.checkpoint, checkpoint.BEST if options.best else checkpoint.LAST)
    config = _config(options, base=copy.deepcopy(saved.config))
    _same_model(config, saved.config)
    pictures = predict.picture_paths(images, options.output)
    boxes = boxes_of(images, options.boxes)
    model = restore_model(saved.config.model, len(saved.classes), saved.model, saved.source)
    model = model.to(choose_device(options.device))
    jobs = list(zip(images, pictures, boxes, strict=True))
    for image, picture, given in tracked(jobs, "prediction", "image", bar=False):  # its own lines show how far it is
        reasoning = predict.explain_given(model, image, given, saved.classes, config.data)
        pages = [str(page) for page in predict.save_pages(picture, reasoning)]
        if options.json:
            print(json.dumps({"image": str(image), "pictures": pages, "regions": predict.as_plain(reasoning)}))
            continue
        if len(images) > 1:
            print(f"{image}:")
        for index in range(len(reasoning.boxes)):
            name, score = reasoning.answer(index)
            given_name = f"; given as {given.names[index]}" if given.names and given.names[index] else ""
            print(
                f"{index + 1}: {name} {score:.2f}  ({trail(reasoning, index) or 'the same at every step'}{given_name})"
            )
        if not len(reasoning.boxes):
            print(f"{given.where} holds no boxes: no regions to name")
        print("\n".join(pages))


def _data(options: argparse.Namespace) -> None:
    from .data import scenes

    if options.what == "scenes":
        facts = scenes.generate(
            Path(options.output_dir), options.train_scenes, options.val_scenes, options.size, options.seed
        )
        for split in ("train", "val"):
            bounds = facts[split]["bounds"]
            print(
                f"{split}: {facts[split]['images']} images; seeing only a box's own view, nobody can pass "
                f"{100 * bounds['instance_accuracy']:.2f}% accuracy, {100 * bounds['class_ap']:.2f}% class AP"
            )
        return
    from .engine.check import check

    findings = check(_config(options), options.images, print)
    for error in findings:
        print(f"  {' '.join(str(error).splitlines())}")
    if findings:
        first, count = findings[0], len(findings)
        listed = f" (the first of {count} findings, all listed above)" if count > 1 else ""
        raise InputError(first.where, first.trouble + listed, first.cure)


def _graph(options: argparse.Namespace) -> None:
    from .data.graphs import save_class_graph, some_edges
    from .engine.build import class_graph, open_dataset

    check_bounds("--show", options.show, 0)
    config = _config(options)
    graph = class_graph(config.data, open_dataset(config.data, "train"), refuse=False)
    for name, (src, dst, weight) in graph.relations.items():
        print(f"{name}: {len(src)} edges")
        for edge in weight.argsort(descending=True, stable=True)[: options.show].tolist():
            print(f"  {graph.classes[src[edge]]} -> {graph.classes[dst[edge]]}  {weight[edge]:.3f}")
    some_edges(graph)
    if options.output:
        save_class_graph(graph, options.output)
        print(options.output)


def _info(options: argparse.Namespace) -> None:
    from irnet_kernels import info

    print(f"irnet {__version__}")
    info.main()


def _same_model(config, saved) -> None:
    if config.model != saved.model:
        raise InputError("command line", "a checkpoint's model cannot be changed", "leave out the model.* settings")


def _config(options: argparse.Namespace, base=None, small: bool = False):
    """The settings: defaults (or a checkpoint's, or the small ones), then --config, then options, then KEY=VALUE."""
    from . import config as settings

    config = base or (settings.small() if small or getattr(options, "small", False) else settings.Config())
    if getattr(options, "config", None):
        config = settings.load(options.config, config)
    for name, key in OPTIONS.items():
        value = getattr(options, name, None)
        if value is not None:
            settings.override(config, key, value, "--" + name.replace("_", "-"))
    for pair in getattr(options, "overrides", []):
        key, equals, value = pair.partition("=")
        if not equals:
            raise InputError("command line", f"{pair!r} is no KEY=VALUE", "write for example train.lr=1e-3")
        settings.override(config, key, value)
    settings.validate(config)
    return config


# option -> config key, where an option is only another name for a setting
OPTIONS = {
    "data": "data.name",
    "data_root": "data.root",
    "variant": "model.variant",
    "steps": "train.steps",
    "batch_size": "train.batch_size",
    "workers": "train.workers",
    "amp": "train.amp",
    "grad_accum_steps": "train.grad_accum_steps",
    "grad_checkpointing": "train.grad_checkpointing",
    "compile": "train.compile",
    "seed": "train.seed",
    "deterministic": "train.deterministic",
    "max_regions": "data.max_regions",
    "limit_batches": "train.limit_batches",
    "init_from": "train.init_from",
}


def _settings_text(config, small=None) -> dict[str, str]:
    """{option: the default that it has in `config`}, and with --small in `small`, where that is another."""
    found = {}
    for name, key in OPTIONS.items():
        values = [as_text(attrgetter(key)(one)) for one in (config, small or config)]
        found[name] = values[0] if values[0] == values[1] else f"{values[0]}, with --small {values[1]}"
    return found


def _parser(words: list[str]) -> argparse.ArgumentParser:
    from . import config as settings

    parser = argparse.ArgumentParser(prog="irnet", description="Iterative visual reasoning over image regions.")
    parser.add_argument("--version", action="version", version=f"irnet {__version__}")
    command = _commands(parser, "COMMAND")

    sub = command("demo", _demo, "generate scenes, train all four variants, compare them on one HTML page")
    sub.add_argument("--output-dir", default="runs/demo", help="the folder of scenes, runs and the page")
    _scene_options(sub)
    _common(sub)
    _run_options(sub)
    sub.set_defaults(steps=250)  # enough to see the differences, in a few minutes
    tell_defaults(sub, _settings_text(settings.small()))

    sub = command("train", _train, "train a model; resumes to the same bits")
    sub.add_argument(
        "--output-dir", required=True, help="the run's folder: checkpoints, log, metrics, results, pictures"
    )
    sub.add_argument("--small", action="store_true", help="the small model for CPUs, in place of the paper's")
    sub.add_argument("--variant", metavar="NAME", help="of the model: conv, local, global or full")
    sub.add_argument(
        "--resume", nargs="?", const="auto", metavar="auto|PATH", help="go on from a run folder or checkpoint"
    )
    sub.add_argument(
        "--init-from", metavar="RUN", help="take what fits of another run's weights, on other classes, too"
    )
    _data_options(sub)
    _common(sub)
    _run_options(sub)
    tell_defaults(sub, _settings_text(settings.Config(), settings.small()))

    sub = command("eval", _eval, "evaluate a run on its held-out split; writes results.json and per_class.csv")
    _checkpoint_options(sub)
    sub.add_argument("--output-dir", help="where the files go; beside the checkpoint if not given")
    _data_options(sub)
    _common(sub)
    _loader_options(sub)
    sub.add_argument("--vis", type=int, default=0, metavar="N", help="draw the first N images into vis/")
    tell_defaults(sub, dict.fromkeys(OPTIONS, "as in the run's training"))

    sub = command("predict", _predict, "name the object in every box of images; writes annotated pictures")
    _predict_options(sub)
    tell_defaults(sub)

    sub = command("data", _data, "generate scenes, or check a data set and count what is in it")
    _dataset_options(sub)
    tell_defaults(sub, _settings_text(settings.Config(), settings.small()))

    sub = command("graph", _graph, "show the class graph of a data set, or write it as JSON")
    sub.add_argument("--show", type=int, default=5, help="strongest edges to print per relation")
    sub.add_argument("--output", metavar="JSON", help="write the graph into this file")
    _settings(sub)
    tell_defaults(sub, _settings_text(settings.Config(), settings.small()))

    sub = command("bench", None, "measure speed and memory, compare and report measurements, guard against regressions")
    if words[:1] == ["bench"]:  # its options come with its modules, which import PyTorch
        from irnet_bench.cli import add_parsers

        add_parsers(_commands(sub, "SUITE|COMMAND"))

    command("info", _info, "versions, devices and the operators' implementations")
    return parser


def _predict_options(sub: argparse.ArgumentParser) -> None:
    sub.add_argument(
        "images", nargs="+", metavar="IMAGE", help="image files; settings such as data.orientation=turned, too"
    )
    sub.add_argument(
        "--boxes",
        required=True,
        action="append",
        metavar="FILE",
        help="JSON list, or lines, of x1 y1 x2 y2 in pixels, one FILE for each image; or one FILE in COCO's format",
    )
    sub.add_argument(
        "--output", metavar="PATH", help="a .png or .jpg file, of several images a folder; here if not given"
    )
    sub.add_argument("--json", action="store_true", help="print the answers as a JSON object on each image's line")
    _checkpoint_options(sub)
    _device_option(sub)
    sub.set_defaults(overrides=[])


def _dataset_options(sub: argparse.ArgumentParser) -> None:
    sub.add_argument("what", choices=["scenes", "check"], help="generate scenes, or check the data set of the settings")
    sub.add_argument("--output-dir", default="data/scenes", help="where scenes are written")
    _scene_options(sub)
    sub.add_argument("--size", type=int, default=192, help="pixels of a scene's side")
    sub.add_argument("--seed", type=int, default=0, help="another seed gives other scenes")
    sub.add_argument("--images", action="store_true", help="decode every image, where otherwise its header is read")
    sub.add_argument("-j", "--workers", type=int, metavar="N", help="processes that read images; 0: the program itself")
    _settings(sub)


def _commands(parser: argparse.ArgumentParser, metavar: str) -> Callable[..., argparse.ArgumentParser]:
    """A function that adds a command to `parser`."""
    commands = parser.add_subparsers(required=True, metavar=metavar)

    def command(name: str, run, text: str) -> argparse.ArgumentParser:
        sub = commands.add_parser(name, help=text, description=text)
        sub.set_defaults(run=run)
        return sub

    return command


def _scene_options(sub: argparse.ArgumentParser) -> None:
    sub.add_argument("--train-scenes", type=int, default=1500, metavar="N", help="scenes to train on, an even number")
    sub.add_argument("--val-scenes", type=int, default=300, metavar="N", help="held-out scenes, an even number")


def _data_options(sub: argparse.ArgumentParser) -> None:
    sub.add_argument("--data", metavar="NAME", help="the kind of data set: coco or scenes")
    sub.add_argument("--data-root", metavar="DIR", help="the folder of the data set, with its images and annotations")


def _settings(sub: argparse.ArgumentParser) -> None:
    """The settings of a run for a command that opens its data and makes no model."""
    _data_options(sub)
    sub.add_argument("--small", action="store_true", help="the settings of train --small, in place of the paper's")
    sub.add_argument("--max-regions", type=int, metavar="N", help="regions kept per training image; 0: all")
    _config_options(sub)


def _checkpoint_options(sub: argparse.ArgumentParser) -> None:
    sub.add_argument("--checkpoint", required=True, metavar="RUN", help="a run folder or a checkpoint file")
    sub.add_argument("--best", action="store_true", help="the checkpoint with the best class AP, not the last")


def _common(sub: argparse.ArgumentParser) -> None:
    _config_options(sub)
    _device_option(sub)


def _device_option(sub: argparse.ArgumentParser) -> None:
    sub.add_argument("--device", default="auto", help="cpu, cuda, cuda:1, ...; auto is the GPU where there is one")


def _config_options(sub: argparse.ArgumentParser) -> None:
    sub.add_argument("--config", metavar="YAML", help="sections model, loss, data, train; see irnet/config.py")
    sub.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help="settings, such as train.lr=1e-3")


def _loader_options(sub: argparse.ArgumentParser) -> None:
    sub.add_argument("-b", "--batch-size", type=int, metavar="N", help="images of a batch")
    sub.add_argument("-j", "--workers", type=int, metavar="N", help="processes that read images; 0: the program itself")
    sub.add_argument("--limit-batches", type=int, metavar="N", help="batches of an evaluation; 0: all")


def _run_options(sub: argparse.ArgumentParser) -> None:
    _loader_options(sub)
    sub.add_argument("--steps", type=int, metavar="N", help="steps of the optimiser, those of a resumed run included")
    sub.add_argument("--amp", choices=["off", "bf16", "fp16"], help="the dtype of mixed precision")
    sub.add_argument("--grad-accum-steps", type=int, metavar="N", help="equal parts in which a batch is worked on")
    sub.add_argument(
        "--grad-checkpointing",
        action="store_true",
        default=None,
        help="compute parts of the forward pass twice: less memory",
    )
    sub.add_argument("--compile", action="store_true", default=None, help="put torch.compile under the heavy parts")
    sub.add_argument("--seed", type=int, metavar="N", help="of initial weights, the order of the data and flips")
    sub.add_argument(
        "--deterministic", action="store_true", default=None, help="only deterministic operators of PyTorch"
    )
    sub.add_argument("--max-regions", type=int, metavar="N", help="regions kept per training image; 0: all")


if __name__ == "__main__":
    sys.exit(main())
