"""Every setting of a run, written once: name, type, default, choices, bounds and help stand beside each other.

YAML files, KEY=VALUE, command-line options and their --help follow from what stands here. Nothing is computed here.
"""

import dataclasses
import difflib
import math
import typing
from collections.abc import Collection
from dataclasses import dataclass, field
from operator import attrgetter
from pathlib import Path
from typing import Any

import yaml

from .data.registry import DATASETS
from .errors import InputError

VARIANTS = ("conv", "local", "global", "full")
MOST = 2**31 - 1  # of anything that is counted
MOST_BUILT = 1000  # of layers and the like, which are made one by one before anything can say that they are too many
FLOAT32 = 3.4e38  # the largest number that the dtype of weights and rates holds


@dataclass(frozen=True)
class Bounds:
    """Which numbers a setting, or an element of one, may be.

    Attributes:
        least: The smallest one; None: minus the largest.
        most: The largest one; None: MOST for integers, FLOAT32 for floats.
        above: A bound that is itself not allowed, as of a number of pixels that must be above 0.
        below: Such a bound from the other side.
        cure: What to do about a value out of bounds, where "give at least" and "give at most" do not say it.
    """

    least: float | None = None
    most: float | None = None
    above: float = -math.inf
    below: float = math.inf
    cure: str = ""


def setting(
    default: Any,
    help: str,
    bounds: Bounds = Bounds(),
    *,
    choices: Collection[str] = (),
    flags: tuple[str, ...] = (),
    metavar: str | None = None,
) -> Any:
    """Declare a setting: a field of one of the sections below, with all that is known of it.

    Args:
        default: Its value where nobody gives one. The type stands in the annotation: bool, int, float, str, list[int]
            or list[str].
        help: What it means, for --help.
        bounds: Which numbers it may be.
        choices: The strings that it may be; empty: any.
        flags: The names of its command-line option, such as ("-b", "--batch-size"); empty: it has none.
        metavar: The option's value in --help; N or X if not given.
    """
    largest = FLOAT32 if isinstance(default, float) else MOST
    least = -largest if bounds.least is None else bounds.least
    most = largest if bounds.most is None else bounds.most
    bounds = dataclasses.replace(bounds, least=least, most=most)
    metadata = {"help": help, "choices": choices, "bounds": bounds, "flags": flags, "metavar": metavar}
    if isinstance(default, list):
        return field(default_factory=lambda: list(default), metadata=metadata)
    return field(default=default, metadata=metadata)


@dataclass
class ModelConfig:
    """The network. Defaults are the authors' (their experiments/cfgs and code); `irnet demo` shrinks them."""

    variant: str = setting("full", "modules beside the ConvNet", choices=VARIANTS, flags=("--variant",))
    backbone: str = setting("resnet50", "the ConvNet's layers", choices=("small", "resnet50", "resnet101"))
    backbone_weights: str = setting(
        "",
        "a torchvision or timm checkpoint file, or the name of a model, such as resnet101, whose weights are in the "
        "user's cache; empty: random weights",
    )
    backbone_channels: int = setting(64, "channels of the small backbone; no other reads it", Bounds(least=2))
    conv_head: list[int] = setting(
        [], "widths of FC layers between the ConvNet's feature and its classifier; modules do not read them", Bounds(1)
    )
    iterations: int = setting(3, "I: each module predicts this often", Bounds(least=1, most=MOST_BUILT))
    patch_size: int = setting(7, "P: cells on the side of a region's patch", Bounds(least=2, most=MOST_BUILT))
    memory_channels: int = setting(512, "channels of the spatial memory", Bounds(least=1))
    memory_size: int = setting(20, "side of the learned initial memory, resized to each image's map", Bounds(least=1))
    gate_channels: int = setting(
        1, "1: one reset and update gate per cell, as the authors have it; 0: one per cell and channel"
    )
    hidden: int = setting(4096, "width of the two FC layers that read the memory", Bounds(least=1))
    graph_channels: int = setting(512, "channels of region states and class features", Bounds(least=1))
    graph_layers: int = setting(
        3, "layers of the global module's graphs in each iteration", Bounds(least=1, most=MOST_BUILT)
    )
    bandwidth: float = setting(
        50.0, "pixels, of the spatial edges", Bounds(above=0, cure="give a number of pixels above 0")
    )
    learn_geometry: bool = setting(
        False, "every graph layer learns its own bandwidth, from this one on, and a scale per type"
    )
    # The paths of the paper's ablations:
    spatial_edges: bool = setting(True, "edges between regions; without, regions meet in the classes alone")
    class_edges: bool = setting(True, "edges between classes; without, a class gives back what it has gathered")
    class_path: bool = setting(True, "regions exchange with classes; without, the graph has regions alone")
    cross_feed: bool = setting(True, "each module reads the last prediction of both; without, its own alone")
    attention: str = setting(
        "learned",
        "how predictions mix into the final one. learned: by confidences; mean: evenly; last: the last ones, evenly",
        choices=("learned", "mean", "last"),
    )
    # What the paper leaves open, with our choice:
    assignment: str = setting(
        "own",
        "the prediction that assigns regions to classes. own: the global module's last one; mean: its mean with the "
        "local module's (the soft-max of the mean logits)",
        choices=("own", "mean"),
    )
    region_start: str = setting(
        "feature",
        "where region states start. feature: from the ConvNet's feature; zero: at zero",
        choices=("feature", "zero"),
    )


@dataclass
class LossConfig:
    """Weights of the loss's parts."""

    memory: float = setting(1.0, "lambda, the weight of each module's iterations", Bounds(least=0))
    final: float = setting(1.0, "mu, the weight of the attended prediction", Bounds(least=0))
    # At 0 an image whose regions are all right would have no weights to normalise.
    beta: float = setting(
        0.5,
        "the least weight of a region that is already right",
        Bounds(above=0, most=1, cure="give a number above 0 and at most 1"),
    )


@dataclass
class DataConfig:
    """Where samples come from and how images are resized."""

    name: str = setting(
        "coco",
        "the data set: coco is any in COCO's format, LVIS too; vg is Visual Genome, voc any in Pascal VOC's format, "
        "scenes a generated one; see irnet/data/registry.py",
        choices=DATASETS,
        flags=("--data",),
    )
    root: str = setting(
        "",
        "the folder of the data set, with its images and annotations; empty: the registry's, such as data/scenes",
        flags=("--data-root",),
        metavar="DIR",
    )
    train_split: str = setting(
        "", "a name, or a JSON file within ROOT; empty: the one that is there, see irnet/data/layouts.py"
    )
    val_split: str = setting("", "the same for the held-out images")
    val_share: float = setting(
        0.1,
        "part of the images that is held out where one file holds everything and no val_split is named",
        Bounds(above=0, below=1, cure="give a part of the images between 0 and 1"),
    )
    split_seed: int = setting(0, "another seed holds out other images", Bounds(least=0))
    orientation: str = setting(
        "auto",
        "of photographs with an EXIF orientation: stored, turned, or auto, by the annotated size",
        choices=("auto", "stored", "turned"),
    )
    max_pixels: int = setting(178_956_970, "of an image; a larger one may be an attack on the memory", Bounds(least=1))
    cache: str = setting(
        "",
        "the folder that keeps what was read of large annotations; empty: ROOT/.irnet, or where that cannot be written "
        "the user's cache folder; off: none",
    )
    min_count: int = setting(
        5,
        "regions that a name needs to be a class, in data sets without a list (ade20k, vg)",
        Bounds(least=1),
    )
    class_graph: str = setting(
        "", "a JSON file; empty: ROOT/class_graph.json where it is, else derived from the training annotations"
    )
    word_vectors: str = setting(
        "",
        "GloVe's or word2vec's vectors, averaged over the words of a name, or a safetensors file with `vectors` "
        "[C, V] in class order; empty: learned class features",
        flags=("--word-vectors",),
        metavar="FILE",
    )
    short_side: int = setting(
        600, "pixels to which the shorter side is resized; 0 keeps images as they are", Bounds(least=0)
    )
    long_side: int = setting(1000, "pixels that the longer side has at most; 0: any number", Bounds(least=0))
    flip: bool = setting(True, "mirror half of the training images")
    max_regions: int = setting(0, "regions kept per training image; 0: all", Bounds(least=0), flags=("--max-regions",))


@dataclass
class TrainConfig:
    """The optimisation. The default schedule is for one image a step."""

    steps: int = setting(
        320_000, "steps of the optimiser, those of a resumed run included", Bounds(least=0), flags=("--steps",)
    )
    batch_size: int = setting(
        1, "images of a batch; fewer where a budget ends it", Bounds(least=1), flags=("-b", "--batch-size")
    )
    max_batch_pixels: int = setting(
        0, "pixels of a training batch as the model takes them, if it is not one image alone; 0: any", Bounds(least=0)
    )
    max_batch_regions: int = setting(0, "regions of a training batch, likewise; 0: any number", Bounds(least=0))
    grad_accum_steps: int = setting(
        1, "equal parts in which a batch is worked on", Bounds(least=1), flags=("--grad-accum-steps",)
    )
    optimizer: str = setting("sgd", "what turns gradients into steps", choices=("sgd", "adamw"))
    lr: float = setting(5e-4, "the learning rate", Bounds(least=0))
    confidence_lr: float = setting(
        1.0, "times lr, for the confidences: below 1, modules learn before attention settles", Bounds(least=0)
    )
    lr_steps: list[int] = setting(
        [200_000, 280_000],
        "steps at which the rate is multiplied by 0.1",
        Bounds(least=0, cure=f"give steps from 0 to {MOST:,}"),
    )
    warmup_steps: int = setting(0, "steps over which the rate rises linearly from nearly zero", Bounds(least=0))
    cosine: bool = setting(False, "anneal the rate to zero over `steps` in place of lr_steps")
    momentum: float = setting(0.9, "of SGD", Bounds(least=0))
    weight_decay: float = setting(1e-4, "of all weights but biases", Bounds(least=0))
    ema: float = setting(
        0.0,
        "decay of an average of the weights, which evaluations and `best` use; less in the first steps; 0: none",
        Bounds(least=0, below=1, cure="give a decay from 0 to below 1, such as 0.999"),
    )
    clip_norm: float = setting(0.0, "the largest norm of the gradient; 0: any", Bounds(least=0))
    parallel: str = setting(
        "auto",
        "how several processes share the training. ddp: each holds all weights; fsdp: each holds some rows of every "
        "weight, gradient and moment; auto: ddp, unless --memory finds that it does not fit",
        choices=("auto", "ddp", "fsdp"),
        flags=("--parallel",),
    )
    amp: str = setting("off", "the dtype of mixed precision", choices=("off", "bf16", "fp16"), flags=("--amp",))
    grad_checkpointing: bool = setting(
        False, "compute parts of the forward pass twice: less memory", flags=("--grad-checkpointing",)
    )
    compile: bool = setting(False, "put torch.compile under the heavy parts", flags=("--compile",))
    workers: int = setting(
        2, "processes that read images; 0: the program itself", Bounds(least=0, most=1024), flags=("-j", "--workers")
    )
    seed: int = setting(
        0,
        "of initial weights, the order of the data and flips",
        Bounds(least=0, most=2**63 - 1, cure="give an integer from 0 to 2^63 - 1"),
        flags=("--seed",),
    )
    deterministic: bool = setting(False, "only deterministic operators of PyTorch", flags=("--deterministic",))
    checkpoint_every: int = setting(1000, "steps from one checkpoint to the next", Bounds(least=1))
    eval_every: int = setting(0, "steps from one evaluation to the next; 0: at the end only", Bounds(least=0))
    log_every: int = setting(20, "steps from one line of the log to the next", Bounds(least=1))
    limit_batches: int = setting(0, "batches of an evaluation; 0: all", Bounds(least=0), flags=("--limit-batches",))
    vis: int = setting(4, "held-out images drawn into vis/ at the end", Bounds(least=0))
    curve: bool = setting(True, "draw the learning curve, curve.png, at every evaluation")
    tensorboard: bool = setting(
        False,
        "write events for TensorBoard into tensorboard/, with the pictures of `vis` at every evaluation",
        flags=("--tensorboard",),
    )
    wandb: bool = setting(
        False, "the same for Weights & Biases, offline, into wandb/; nothing is sent", flags=("--wandb",)
    )
    init_from: str = setting(
        "",
        "a run folder or checkpoint: take what fits of its weights, on other classes, too; empty: random weights",
        flags=("--init-from",),
        metavar="RUN",
    )


@dataclass
class Config:
    """A whole run."""

    model: ModelConfig = field(default_factory=ModelConfig)
    loss: LossConfig = field(default_factory=LossConfig)
    data: DataConfig = field(default_factory=DataConfig)
    train: TrainConfig = field(default_factory=TrainConfig)


def small() -> Config:
    """Settings for CPUs and generated scenes: a model of a few hundred thousand weights, trained in a minute or two.

    The small backbone sees 31 pixels around each cell. Nothing is mirrored: scenes tell left from right.
    """
    return Config(
        ModelConfig(
            backbone="small",
            backbone_channels=48,
            iterations=2,
            patch_size=5,  # the boxes are one to three cells wide
            memory_channels=64,
            memory_size=12,
            hidden=128,
            graph_channels=64,
            graph_layers=2,
        ),
        LossConfig(),
        DataConfig(name="scenes", short_side=0, flip=False),
        TrainConfig(
            steps=300,
            batch_size=16,
            optimizer="adamw",
            lr=4e-3,
            confidence_lr=0.1,  # at 1, attention may leave the global module for good before that has learned
            lr_steps=[],
            warmup_steps=20,
            cosine=True,
            clip_norm=1.0,
            checkpoint_every=100,
            log_every=10,
            workers=1,
        ),
    )


def shipped() -> dict[str, Path]:
    """The YAML files that come with irnet, by the names under which `--config` finds them."""
    paths = (Path(__file__).parent / "configs").glob("*.yaml")
    return {path.stem: path for path in sorted(paths, key=lambda path: path.stem)}


def load(path: str | Path, base: Config | None = None) -> Config:
    """Read a YAML file of sections model, loss, data and train; what it leaves out is as in `base` (the defaults).

    path  a file, or where there is none of that name one of `shipped`
    InputError names an unknown key or a wrong value.
    """
    if not Path(path).is_file():
        path = shipped().get(str(path), path)
    try:
        text = Path(path).read_text(encoding="utf-8")
        values = _UniqueKeys(text).get_single_data() or {}
    except OSError as error:
        raise InputError(
            path, error.strerror or str(error), f"give a readable YAML file, or one of {', '.join(shipped())}"
        ) from error
    except UNREADABLE as error:
        raise InputError(path, f"is not valid YAML ({' '.join(str(error).split())})", "correct the file") from error
    return from_dict(values, path, base)


class _UniqueKeys(yaml.SafeLoader):
    """Refuses a key that is given twice in one mapping: PyYAML takes the last without a word."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict:
        keys = [key.value for key, _ in node.value]
        for (key, _), name in zip(node.value, keys, strict=True):
            if isinstance(name, str) and keys.count(name) > 1:
                raise yaml.constructor.ConstructorError(None, None, f"{name!r} is given twice", key.start_mark)
        return super().construct_mapping(node, deep)


# What PyYAML raises for text that is no YAML, and for a date, a number or a depth that Python cannot hold.
UNREADABLE = (yaml.YAMLError, ValueError, RecursionError, OverflowError)


def from_dict(values: Any, where: str | Path, base: Config | None = None) -> Config:
    """A Config from nested plain values, as `dataclasses.asdict` gives them, over `base`. InputErrors name `where`."""
    config = base or Config()
    sections = {f.name for f in dataclasses.fields(config)}
    if not isinstance(values, dict) or not all(isinstance(v, dict) for v in values.values()):
        raise InputError(where, "does not hold sections of settings", f"use the sections {', '.join(sorted(sections))}")
    for section, entries in values.items():
        for key, value in entries.items():
            override(config, f"{section}.{key}", value, where)
    return config


def fields_of(config: Config) -> dict[str, dataclasses.Field]:
    """The declaration of every setting: SECTION.NAME -> its field."""
    return {
        f"{section}.{field.name}": field
        for section, values in vars(config).items()
        for field in dataclasses.fields(values)
    }


def override(config: Config, key: str, value: Any, where: str | Path = "command line") -> None:
    """Set `config.SECTION.NAME` for key "SECTION.NAME"; a string value is read as YAML where the field is no string."""
    fields = fields_of(config)
    if key not in fields:
        near = difflib.get_close_matches(key, fields, n=1, cutoff=0.4)
        raise InputError(
            where, f"unknown config key {key!r}", f"did you mean {near[0]}?" if near else "see irnet/config.py"
        )
    section, _, name = key.partition(".")
    expected = typing.get_origin(fields[key].type) or fields[key].type
    if isinstance(value, str) and expected is not str:
        try:
            value = yaml.safe_load(value)
        except UNREADABLE:
            value = None
    if expected is float and isinstance(value, (int, float, str)) and not isinstance(value, bool):
        try:
            value = float(value)  # YAML reads 5e-4 as a string
        except (ValueError, OverflowError):
            value = None
    elements = typing.get_args(fields[key].type)
    if type(value) is not expected or (elements and any(type(element) is not elements[0] for element in value)):
        default = attrgetter(key)(config)
        raise InputError(where, f"{key} wants a value of type {expected.__name__}", f"the default is {default!r}")
    setattr(getattr(config, section), name, value)


def validate(config: Config, where: str | Path = "command line") -> None:
    """InputError for values that name nothing or make no sense."""
    for key, declared in fields_of(config).items():
        value, rule = attrgetter(key)(config), declared.metadata
        if rule["choices"] and value not in rule["choices"]:
            raise InputError(where, f"{key} is {value!r}", f"choose one of {', '.join(rule['choices'])}")
        verb = "holds" if isinstance(value, list) else "is"
        for number in value if isinstance(value, list) else [value]:
            if isinstance(number, bool | str):
                continue
            bounds = rule["bounds"]
            if not (bounds.least <= number <= bounds.most and bounds.above < number < bounds.below):  # true for NaN
                high = bounds.most < number < math.inf
                cure = bounds.cure or (f"give at most {bounds.most:,}" if high else f"give at least {bounds.least}")
                raise InputError(where, f"{key} {verb} {_short(number)}", cure)
    model, train = config.model, config.train
    if model.gate_channels not in (0, 1, model.memory_channels):
        trouble = f"model.gate_channels is {model.gate_channels}"
        raise InputError(where, trouble, f"give 1, or 0 for one gate for each of {model.memory_channels} channels")
    if train.batch_size % train.grad_accum_steps:
        trouble = f"train.batch_size {train.batch_size} cannot be split into {train.grad_accum_steps} equal parts"
        raise InputError(where, trouble, "make it a multiple of train.grad_accum_steps")


def _short(value: float) -> str:
    """A number for a message, which a few thousand digits would drown."""
    if isinstance(value, int) and abs(value) >= 2**70:
        return "below -2^70" if value < 0 else "beyond 2^70"
    return str(value)


def dump(config: Config) -> str:
    """The config as YAML text."""
    return yaml.safe_dump(dataclasses.asdict(config), sort_keys=False)
