"""Every setting of a run, with its default and its reason; YAML and KEY=VALUE overrides. Nothing is computed here."""

import dataclasses
import difflib
import math
from dataclasses import dataclass, field
from operator import attrgetter
from pathlib import Path
from typing import Any

import yaml

from .errors import InputError

VARIANTS = ("conv", "local", "global", "full")
MOST = 2**31 - 1  # of anything that is counted
# Of what is made one by one before anything can say that it is too much.
MANY = {"model.iterations": 1000, "model.graph_layers": 1000, "model.patch_size": 1000, "train.workers": 1024}
FLOAT32 = 3.4e38  # what weights and rates are kept in holds no larger number


@dataclass
class ModelConfig:
    """The network. Defaults are the authors' (their experiments/cfgs and code); `irnet demo` shrinks them."""

    variant: str = "full"  # conv, local, global or full
    backbone: str = "resnet50"  # small, resnet50 or resnet101
    backbone_weights: str = ""  # a torchvision or timm checkpoint file; empty: random weights
    backbone_channels: int = 64  # of the small backbone only
    iterations: int = 3  # I: each module predicts this often
    patch_size: int = 7  # P
    memory_channels: int = 512  # of the spatial memory
    memory_size: int = 20  # side of the learned initial memory, resized to each image's map
    gate_channels: int = 1  # 1: one reset and update gate per cell, as the authors'; 0: one per cell and channel
    hidden: int = 4096  # width of the two FC layers that read the memory
    graph_channels: int = 512  # of region states and class features
    graph_layers: int = 3
    bandwidth: float = 50.0  # pixels, of the spatial edges
    learn_geometry: bool = False  # every graph layer learns its own bandwidth, from this one on, and a scale per type
    # What the paper leaves open, with our choice:
    # which prediction assigns regions to classes: "own" is the global module's last one, "mean" averages it with the
    # local module's (the soft-max of the mean logits).
    assignment: str = "own"
    # whether the region states start from the ConvNet's feature ("feature") or at zero ("zero").
    region_start: str = "feature"


@dataclass
class LossConfig:
    """Weights of the loss's parts."""

    memory: float = 1.0  # lambda, of each module's iterations
    final: float = 1.0  # mu, of the attended prediction
    beta: float = 0.5  # the least weight of a region that is already right


@dataclass
class DataConfig:
    """Where samples come from and how images are resized."""

    name: str = "coco"  # coco, or scenes (a generated set in the same layout)
    root: str = ""
    train_split: str = ""  # a name, or a JSON file within ROOT; empty: what is there, see irnet/data/layouts.py
    val_split: str = ""
    val_share: float = 0.1  # held out by image where one file holds everything and no val_split is named
    split_seed: int = 0  # which images those are
    orientation: str = "auto"  # of photographs with an EXIF orientation: stored, turned, or auto, by the annotated size
    max_pixels: int = 178_956_970  # of an image; a larger one may be an attack on the memory
    class_graph: str = ""  # empty: ROOT/class_graph.json where it is, else derived from the training annotations
    word_vectors: str = ""  # a safetensors file with `vectors` [C, V] in class order; empty: learned class features
    short_side: int = 600  # pixels; 0 keeps images as they are
    long_side: int = 1000
    flip: bool = True
    max_regions: int = 0  # regions kept per training image; 0: all


@dataclass
class TrainConfig:
    """The optimisation. Defaults are the authors' schedule."""

    steps: int = 320_000
    batch_size: int = 1
    grad_accum_steps: int = 1  # a step's images are worked on in this many equal parts
    optimizer: str = "sgd"  # sgd or adamw
    lr: float = 5e-4
    confidence_lr: float = 1.0  # times lr, for the confidences: below 1, modules learn before attention settles
    lr_steps: list[int] = field(default_factory=lambda: [200_000, 280_000])  # x 0.1 at each
    warmup_steps: int = 0
    cosine: bool = False  # anneal to zero over `steps` in place of lr_steps
    momentum: float = 0.9
    weight_decay: float = 1e-4  # not on biases
    clip_norm: float = 0.0  # 0: no clipping of the gradient's norm
    amp: str = "off"  # off, bf16 or fp16
    grad_checkpointing: bool = False
    compile: bool = False
    workers: int = 2
    seed: int = 0
    deterministic: bool = False
    checkpoint_every: int = 1000  # steps
    eval_every: int = 0  # steps; 0: at the end only
    log_every: int = 20  # steps
    limit_batches: int = 0  # of evaluation; 0: all
    vis: int = 4  # held-out images drawn into vis/ at the end
    # A run folder or checkpoint whose weights a new run starts from, as far as they fit; empty: random weights.
    init_from: str = ""


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


def load(path: str | Path, base: Config | None = None) -> Config:
    """Read a YAML file of sections model, loss, data and train; what it leaves out is as in `base` (the defaults).

    InputError names an unknown key or a wrong value.
    """
    try:
        text = Path(path).read_text(encoding="utf-8")
        values = _UniqueKeys(text).get_single_data() or {}
    except OSError as error:
        raise InputError(path, error.strerror or str(error), "give a readable YAML file") from error
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


def override(config: Config, key: str, value: Any, where: str | Path = "command line") -> None:
    """Set `config.SECTION.NAME` for key "SECTION.NAME"; a string value is read as YAML where the field is no string."""
    section_name, _, name = key.partition(".")
    section = vars(config).get(section_name)
    if section is None or name not in vars(section):
        known = [
            f"{s.name}.{f.name}"
            for s in dataclasses.fields(config)
            for f in dataclasses.fields(getattr(config, s.name))
        ]
        near = difflib.get_close_matches(key, known, n=1, cutoff=0.4)
        raise InputError(
            where, f"unknown config key {key!r}", f"did you mean {near[0]}?" if near else "see irnet/config.py"
        )
    old = getattr(section, name)
    if isinstance(value, str) and not isinstance(old, str):
        try:
            value = yaml.safe_load(value)
        except UNREADABLE:
            value = None
    if isinstance(old, float) and isinstance(value, (int, float, str)) and not isinstance(value, bool):
        try:
            value = float(value)  # YAML reads 5e-4 as a string
        except (ValueError, OverflowError):
            value = None
    right = type(value) is type(old) and (not isinstance(old, list) or all(type(v) is int for v in value))
    if not right:
        raise InputError(where, f"{key} wants a value of type {type(old).__name__}", f"the default is {old!r}")
    setattr(section, name, value)


CHOICES = {
    "model.variant": VARIANTS,
    "model.backbone": ("small", "resnet50", "resnet101"),
    "model.assignment": ("own", "mean"),
    "model.region_start": ("feature", "zero"),
    "data.name": ("coco", "scenes"),
    "data.orientation": ("auto", "stored", "turned"),
    "train.optimizer": ("sgd", "adamw"),
    "train.amp": ("off", "bf16", "fp16"),
}
LEAST = {
    "model.backbone_channels": 2,
    "model.iterations": 1,
    "model.patch_size": 2,
    "model.memory_channels": 1,
    "model.memory_size": 1,
    "model.hidden": 1,
    "model.graph_channels": 1,
    "model.graph_layers": 1,
    "loss.memory": 0,
    "loss.final": 0,
    "data.short_side": 0,
    "data.long_side": 0,
    "data.max_regions": 0,
    "data.max_pixels": 1,
    "data.split_seed": 0,
    "train.steps": 0,
    "train.batch_size": 1,
    "train.grad_accum_steps": 1,
    "train.lr": 0,
    "train.confidence_lr": 0,
    "train.warmup_steps": 0,
    "train.momentum": 0,
    "train.weight_decay": 0,
    "train.clip_norm": 0,
    "train.workers": 0,
    "train.checkpoint_every": 1,
    "train.eval_every": 0,
    "train.log_every": 1,
    "train.limit_batches": 0,
    "train.vis": 0,
}


def validate(config: Config, where: str | Path = "command line") -> None:
    """InputError for values that name nothing or make no sense."""
    model, loss, data, train = config.model, config.loss, config.data, config.train
    for key, allowed in CHOICES.items():
        value = attrgetter(key)(config)
        if value not in allowed:
            raise InputError(where, f"{key} is {value!r}", f"choose one of {', '.join(allowed)}")
    for key, lowest in LEAST.items():
        value = attrgetter(key)(config)
        highest = MANY.get(key, MOST) if isinstance(value, int) else FLOAT32
        if not lowest <= value <= highest:  # false for NaN
            cure = f"give at most {highest:,}" if highest < value < math.inf else f"give at least {lowest}"
            raise InputError(where, f"{key} is {_short(value)}", cure)
    if not 0 <= train.seed < 2**63:
        raise InputError(where, f"train.seed is {_short(train.seed)}", "give an integer from 0 to 2^63 - 1")
    for step in train.lr_steps:
        if not 0 <= step <= MOST:
            raise InputError(where, f"train.lr_steps holds {_short(step)}", f"give steps from 0 to {MOST:,}")
    if not 0 < model.bandwidth <= FLOAT32:
        raise InputError(where, f"model.bandwidth is {model.bandwidth}", "give a number of pixels above 0")
    if not 0 < data.val_share < 1:
        raise InputError(where, f"data.val_share is {data.val_share}", "give a part of the images between 0 and 1")
    if not 0 < loss.beta <= 1:  # at 0 an image whose regions are all right would have no weights to normalise
        raise InputError(where, f"loss.beta is {loss.beta}", "give a number above 0 and at most 1")
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
