"""The largest micro-batch whose step fits into a given memory, by the plans of memory.py. Runs no step."""

import re
from collections.abc import Iterator
from dataclasses import dataclass

import torch

from irnet_kernels import EdgeSet

from ..config import Config
from ..data.dataset import RegionDataset
from ..data.transforms import resized_size
from ..errors import InputError
from ..models.irnet import IRNet
from ..progress import Progress
from .build import class_graph, read_word_vectors
from .memory import Footprint, Scene, model_of, planned, planned_evaluation, with_train
from .memory_shared import planned_share
from .sharded import one_number

_UNITS = {"": 1, "K": 1000, "M": 1000**2, "G": 1000**3, "T": 1000**4}
_UNITS |= {f"{letter}i": 1024**power for power, letter in enumerate("KMGT", 1)}

SMALLER_IMAGES = "take smaller images (data.short_side), fewer regions (--max-regions), a smaller model or more memory"


@dataclass(frozen=True)
class Fit:
    """Settings whose step has a plan, which is that of each process. `config` is never the caller's own."""

    config: Config
    footprint: Footprint
    processes: int = 1

    @property
    def micro_batch(self) -> int:
        """Images that a process works on at once; fewer where a budget of the batch says so."""
        return -(-self.config.train.batch_size // (self.processes * self.config.train.grad_accum_steps))

    @property
    def words(self) -> str:
        """The settings that a fit decides, as `irnet train` takes them."""
        train = self.config.train
        keys = ("batch_size", "grad_accum_steps", "amp", "grad_checkpointing")
        return " ".join(f"train.{key}={str(getattr(train, key)).lower()}" for key in keys)


def read_memory(text: str) -> int:
    """Read a number of bytes with a unit, such as 8GiB or 7.5 GB; InputError for anything else."""
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([KMGT]?i?)B?\s*", text, re.IGNORECASE)
    unit = (match[2][:1].upper() + match[2][1:].lower()) if match else ""
    size = float(match[1]) * _UNITS[unit] if match and unit in _UNITS else 0.0
    if not 1 <= size < 2**63:
        raise InputError("--memory", f"{text!r} is not a size", "write for example 8GiB or 7500MB")
    return int(size)


def scene_of(data: RegionDataset, config: Config, model: IRNet | None = None) -> Scene:
    """Describe the images that take most: the largest of them, and as many regions as those with most have.

    Args:
        data: Part of a data set.
        config: Settings of the run.
        model: Whose class graph and word vectors count, as those of a run that goes on; None: the data's.
    """
    short, long = config.data.short_side, config.data.long_side
    sizes = [resized_size(height, width, short, long) for height, width in data.image_sizes().tolist()]
    height, width = max(sizes, key=lambda size: size[0] * size[1])
    regions = sorted((len(labels) for labels in data.image_labels()), reverse=True)
    edges = vectors = None
    if model is not None:
        if model.graph is not None:
            edges, vectors = model.graph.class_graph, getattr(model.graph, "word_vectors", None)
    elif config.model.variant in ("global", "full"):
        relations = class_graph(config.data, data).relations
        edges = EdgeSet.from_edges(list(relations.values()), len(data.classes), normalize=True)
        vectors = read_word_vectors(config.data.word_vectors, data.classes)
    vector_size = 0 if vectors is None else vectors.shape[1]
    return Scene(height, width, tuple(regions), len(data.classes), edges, vector_size, tuple(dict.fromkeys(sizes)))


def made_up_edges(classes: int, types: int = 2) -> EdgeSet:
    """Edges for a plan without data: all types between neighbours, each class with four."""
    nodes = torch.arange(classes)
    shifts = [k for k in (1, 2, -1, -2) if classes > 1]
    sources, targets = nodes.repeat(len(shifts)), torch.cat([nodes[:0], *(nodes.roll(k) for k in shifts)])
    return EdgeSet.from_edges([(sources, targets, torch.ones(len(sources)))] * types, classes, normalize=True)


def ways(config: Config) -> Iterator[Config]:
    """The settings as they are and, after them, those that usually take less: checkpointing, bfloat16, both."""
    for amp in dict.fromkeys((config.train.amp, config.train.amp if config.train.amp != "off" else "bf16")):
        for checkpointing in dict.fromkeys((config.train.grad_checkpointing, True)):
            yield with_train(config, amp=amp, grad_checkpointing=checkpointing)


def fit_of(config: Config, scene: Scene, gpu: bool, processes: int = 1) -> Fit:
    """The plan of a step with settings as they are, of one of so many processes."""
    alone = processes == 1
    plan = planned(config, scene, gpu) if alone else planned_share(config, scene, processes, gpu)
    return Fit(config, plan, processes)


def largest(config: Config, scene: Scene, memory: int, gpu: bool, processes: int = 1) -> Fit:
    """Find the largest micro-batch that fits, of those into which the batch can be split evenly.

    More parts take less memory, from two on. One part may take less than two: the gradients that parts add up exist
    together, those of a whole batch need not (see step.train_step). It is tried first.

    Args:
        config: Settings of the run; its batch size is kept, the number of parts is not.
        scene: What its images look like.
        memory: Bytes that a step may take.
        gpu: See `memory.planned`.
        processes: Their number, of which each works on its share of a batch in so many parts.

    Returns:
        The settings with the fewest parts that fit. Where none do, those that take least.
    """
    images = config.train.batch_size
    parts = [n for n in range(1, images + 1) if images % n == 0]
    low, high, best = 0, len(parts), None  # parts[high] is known to fit
    least = None
    while low < high:
        at = (low + high) // 2 if low else 0  # the whole batch first
        tried = with_train(config, grad_accum_steps=parts[at])
        fit = fit_of(tried, scene, gpu, processes)
        least = fit if least is None or fit.footprint.total < least.footprint.total else least
        if fit.footprint.total <= memory:
            best, high = fit, at
        else:
            low = at + 1
    return best or least


def search(config: Config, scene: Scene, memory: int, gpu: bool, every: bool, processes: int = 1) -> list[Fit]:
    """Find the largest micro-batch that fits in each of the `ways`, or where none does, what takes least.

    Args:
        config: See `largest`, like all others but one.
        every: Whether to go through all of them. Else nothing comes behind the settings as they are, if these fit.

    Returns:
        One for each way, in their order.
    """
    plans: list[Fit] = []
    with Progress("planning the memory"):
        for way in ways(config):
            plans.append(largest(way, scene, memory, gpu, processes))
            if not every and plans[0].footprint.total <= memory:
                break
    return plans


def fitted(config: Config, scene: Scene, memory: int, gpu: bool, processes: int = 1) -> Fit:
    """Choose how many parts a batch is worked on in, for a run whose steps shall take at most `memory` bytes.

    Args:
        config: Settings of the run, of which `train.grad_accum_steps` is decided here.
        scene: What its images look like.
        memory: Bytes.
        gpu: See `memory.planned`.
        processes: See `largest`. Where they leave open how they share the training, they share weights if
            need be and every weight can be split.

    Raises:
        InputError: No number of parts fits. It says with which settings a step would.
    """
    choices = (config.train.parallel,)
    if processes > 1 and choices == ("auto",):
        with torch.device("meta"):
            choices = ("ddp",) if one_number(model_of(config, scene)) else ("ddp", "fsdp")
    for parallel in choices:
        plans = search(with_train(config, parallel=parallel), scene, memory, gpu, every=False, processes=processes)
        if plans[0].footprint.total <= memory:
            return plans[0]
    raise too_little(memory, scene, plans)


EVALUATED = 64  # images at once at the most: with more, little gets faster


def evaluated_at_once(config: Config, scene: Scene, memory: int, gpu: bool, training: bool = False) -> int:
    """Choose how many images an evaluation lets through the model together.

    Args:
        config: Settings of the run.
        scene: What the images of the evaluation look like.
        memory: Bytes that it may take.
        gpu: See `memory.planned`.
        training: See `memory.planned_evaluation`.

    Returns:
        The most that fit, of those up to EVALUATED.

    Raises:
        InputError: Not even one image does.
    """
    with Progress("planning the evaluation"):
        least = planned_evaluation(config, scene, 1, gpu, training).total
        if least > memory:
            trouble = f"an evaluation of one image of {_size(scene)} takes {size_text(least)}, not {size_text(memory)}"
            raise InputError("--memory", trouble, SMALLER_IMAGES)
        low, high = 1, min(EVALUATED, len(scene.regions))  # low is known to fit
        while low < high:
            at = (low + high + 1) // 2
            if planned_evaluation(config, scene, at, gpu, training).total <= memory:
                low = at
            else:
                high = at - 1
    return low


def too_little(memory: int, scene: Scene, plans: list[Fit]) -> InputError:
    """The error where the first of `plans` does not fit: it names the first that does, else the least."""
    trouble = f"no step on images of {_size(scene)} fits into {size_text(memory)}"
    fitting = [fit for fit in plans if fit.footprint.total <= memory]
    if fitting:
        return InputError("--memory", f"{trouble} with these settings", f"this fits: {fit_text(fitting[0])}")
    least = min(plans, key=lambda fit: fit.footprint.total)
    return InputError("--memory", trouble, f"the least is {fit_text(least)}: {SMALLER_IMAGES}")


def _size(scene: Scene) -> str:
    return f"{scene.height} x {scene.width} pixels and {scene.regions[0]} regions"


def fit_text(fit: Fit) -> str:
    """A fit in a few words: its settings and its peak."""
    return f"{fit.words}, {size_text(fit.footprint.total)}"


def size_text(size: int) -> str:
    """A number of bytes for a message."""
    units = [(1024**3, "GiB"), (1024**2, "MiB"), (1024, "KiB")]
    return next((f"{size / unit:.2f} {name}" for unit, name in units if size >= unit), f"{size} bytes")
