"""From a config to both parts of a data set, a class graph and a model."""

import dataclasses
import logging
from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from irnet_kernels import EdgeSet

from ..class_graphs.annotations import derive_class_graph
from ..class_graphs.format import ClassGraph, load_class_graph
from ..class_graphs.word_vectors import name_vectors
from ..config import Config, DataConfig, ModelConfig
from ..data.dataset import RegionDataset
from ..data.registry import open_dataset
from ..errors import InputError
from ..models.global_module import EDGE_TENSORS
from ..models.irnet import IRNet
from ..progress import Progress

CHANGED = "it is damaged or was changed by hand: take another one"
# Weights that belong to the classes' names or numbers.
OF_CLASSES = ("classifier.", "map_logits.", "class_features")
DATA_TENSORS = (*("graph." + name for name in EDGE_TENSORS), "graph.word_vectors")  # which come from the data
log = logging.getLogger("irnet")


def open_splits(config: DataConfig) -> tuple[RegionDataset, RegionDataset]:
    """Open the training and the held-out part of the configured data set.

    Args:
        config: Settings of the data.

    Returns:
        Both parts, in this order.

    Raises:
        InputError: One of them cannot be read, holds no region, or has other classes.
    """
    train, held_out = open_dataset(config, "train"), open_dataset(config, "val")
    some_regions(train)
    some_regions(held_out)
    same_classes(held_out.classes, train.classes, held_out.path, "give both splits the same categories")
    return train, held_out


def class_graph(config: DataConfig, train: RegionDataset, refuse: bool = True) -> ClassGraph:
    """Read the named class graph, else the data set's own, else derive one from its training annotations.

    Args:
        config: Settings of the data.
        train: Training part of the data set.
        refuse: Whether a derived class graph without an edge is an error.

    Returns:
        The class graph.

    Raises:
        InputError: The file cannot be used, or the derived class graph has no edge.
    """
    path = Path(config.class_graph or train.root / "class_graph.json")
    if config.class_graph or path.exists():
        return load_class_graph(path, train.classes)
    with Progress(f"class graph of {train.split}"):
        return derive_class_graph(train, refuse)


def build_model(config: Config, train: RegionDataset, pretrained: bool = True) -> IRNet:
    """Make a fresh model for the training set's classes; its initial weights follow from train.seed alone.

    Args:
        config: Settings of the run.
        train: Training part of its data set.
        pretrained: Whether to read model.backbone_weights, which a run that goes on has no need of.

    Returns:
        The model, on the CPU.

    Raises:
        InputError: A file that the settings name cannot be used.
    """
    weights = config.model.backbone_weights if pretrained else ""
    edges = vectors = None
    if config.model.variant in ("global", "full"):
        relations = class_graph(config.data, train).relations
        edges = EdgeSet.from_edges(list(relations.values()), len(train.classes), normalize=True)
        vectors = read_word_vectors(config.data.word_vectors, train.classes)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.train.seed)
        model = dataclasses.replace(config.model, backbone_weights=weights)
        with Progress("building the model"):
            return IRNet(model, len(train.classes), edges, vectors)


def restore_model(
    config: ModelConfig, classes: int, state: dict[str, Tensor], where: str | Path = "the checkpoint"
) -> IRNet:
    """Make the model that a checkpoint's tensors belong to; its class graph is among them.

    Args:
        config: Settings of the model.
        classes: Number of classes.
        state: State dict, which may be a mapped file: the model shares no memory with it.
        where: Name of the checkpoint, for messages.

    Returns:
        The model, on the CPU.

    Raises:
        InputError: The tensors do not fit the settings or each other.
    """
    config = dataclasses.replace(config, backbone_weights="")
    edges = None
    if config.variant in ("global", "full"):
        edges = _restore_edges(classes, state, where)
    vectors = state.get("graph.word_vectors")
    try:
        with torch.device("meta"):  # its shapes alone: sizes that lie would take all memory
            shapes = {name: t.shape for name, t in IRNet(config, classes, edges, vectors).state_dict().items()}
    except (RuntimeError, IndexError) as error:  # a size beyond all bounds; word vectors that are no table
        raise InputError(where, f"does not fit its own settings ({error})", CHANGED) from error
    misfits = sorted(name for name in shapes.keys() | state.keys() if _shape(state, name) != shapes.get(name))
    if misfits:
        name = misfits[0]
        trouble = (
            f"does not fit its own settings ({name} is {_text(_shape(state, name))}, not {_text(shapes.get(name))})"
        )
        raise InputError(where, trouble, CHANGED)
    model = IRNet(config, classes, edges, None if vectors is None else vectors.clone())
    model.load_state_dict(state)
    return model


def _restore_edges(classes: int, state: dict[str, Tensor], where: str | Path) -> EdgeSet:
    """The class graph among a checkpoint's tensors, in memory of its own."""
    names = DATA_TENSORS[: len(EDGE_TENSORS)]
    missing = [name for name in names if name not in state]
    if missing:
        raise InputError(where, f"holds no class graph ({missing[0]} is missing)", CHANGED)
    tensors = [state[name].clone() for name in names]
    if any(t.dim() != 1 for t in tensors):
        raise InputError(where, "its class graph is not made of lists", CHANGED)
    if len(tensors[3]) != len(tensors[0]):
        raise InputError(where, "holds its class graph as older versions of irnet did", "train again")
    for indptr, indices, values in (tensors[:3], tensors[3:]):
        bounds = indptr.tolist()
        sound = bounds == sorted(bounds) and (bounds or [1])[0] == 0 and bounds[-1] == len(indices) == len(values)
        if not sound or (len(bounds) - 1) % classes or not ((indices >= 0) & (indices < classes)).all():
            raise InputError(where, "its class graph contradicts itself", CHANGED)
    return EdgeSet(classes, (len(tensors[0]) - 1) // classes, *tensors)


def take_weights(
    model: IRNet, classes: list[str], state: dict[str, Tensor], state_classes: list[str], where: Path
) -> None:
    """Copy into a model what fits of another run's weights, and log what does not; its class graph stays its own.

    Args:
        model: Model that is changed.
        classes: Names of its classes.
        state: State dict of the other run.
        state_classes: Names of that run's classes; where they differ, weights that belong to classes are left out.
        where: Name of the other run's checkpoint, for messages.

    Raises:
        InputError: None of the weights fits.
    """
    own = {name: t for name, t in model.state_dict().items() if name not in DATA_TENSORS}
    reasons = {name: "only there" for name in state if name not in own and name not in DATA_TENSORS}
    for name, tensor in own.items():
        if name not in state:
            reasons[name] = "only here"
        elif state_classes != classes and any(part in name for part in OF_CLASSES):
            reasons[name] = "other classes"
        elif state[name].shape != tensor.shape:
            reasons[name] = f"{list(state[name].shape)} there, {list(tensor.shape)} here"
        else:
            tensor.copy_(state[name])
    copied = sum(name not in reasons for name in own)
    if not copied:
        raise InputError(where, "none of its weights fits the model", "give the model the settings of that run")
    log.info("%s: %d of %d tensors taken", where, copied, len(own))
    for name, reason in reasons.items():
        log.info("  not taken: %s (%s)", name, reason)


def _shape(state: dict[str, Tensor], name: str) -> torch.Size | None:
    return state[name].shape if name in state else None


def _text(shape: torch.Size | None) -> str:
    return "missing" if shape is None else str(list(shape))


def same_classes(
    classes: list[str],
    expected: list[str],
    where: str | Path,
    cure: str = "use the data set that the run was trained on",
) -> None:
    """Refuse data whose classes are not the expected ones, in their order.

    Args:
        classes: Names of the data's classes.
        expected: Names that they must be.
        where: Name of the file, for the message.
        cure: What the user can do, for the message.

    Raises:
        InputError: They differ.
    """
    if classes == expected:
        return
    extra, missing = sorted(set(classes) - set(expected)), sorted(set(expected) - set(classes))
    trouble = f"the data's {len(classes)} classes are not the {len(expected)} expected"
    trouble += "".join(f", {what} {names[0]!r}" for what, names in (("new:", extra), ("missing:", missing)) if names)
    if not extra and not missing:
        trouble += ": they are in another order"
    raise InputError(where, trouble, cure)


def some_regions(data: RegionDataset) -> None:
    """Raise InputError for a split that holds no region to learn or to judge."""
    if not sum(map(len, data.image_labels())):
        trouble = f"its {len(data)} images hold no region"
        skipped = ", ".join(f"{count} {reason}" for reason, count in data.skipped.items())
        trouble += f" (skipped: {skipped})" if skipped else ""
        raise InputError(data.path, trouble, "choose a split with annotated boxes")


def read_word_vectors(path: str, classes: Sequence[str]) -> Tensor | None:
    """Read word vectors, and log which words of the classes' names have none.

    Args:
        path: A safetensors file with a tensor named "vectors"; else GloVe's or word2vec's vectors, see `name_vectors`;
            empty for none.
        classes: Names of the classes.

    Returns:
        float32 [C, V], one row per class in their order, or None for no file.

    Raises:
        InputError: The file cannot be read, or its tensor has another shape or a number that is not finite.
    """
    if not path:
        return None
    if not _is_safetensors(Path(path)):
        with Progress("word vectors"):
            class_vectors = name_vectors(Path(path), classes)
        if class_vectors.missing:
            log.warning("%s: %s", path, class_vectors.report())
        return torch.from_numpy(class_vectors.vectors)
    try:
        vectors = load_file(path)["vectors"].float()
    except (OSError, SafetensorError, KeyError) as error:
        raise InputError(path, f"has no readable tensor `vectors` ({error})", "give a safetensors file") from error
    if vectors.dim() != 2 or len(vectors) != len(classes) or not vectors.isfinite().all():
        trouble = f"`vectors` is {list(vectors.shape)}, not finite [{len(classes)}, V]"
        raise InputError(path, trouble, "give one row per class, in the data set's order")
    return vectors


def _is_safetensors(path: Path) -> bool:
    """Whether a file is to be read as safetensors: it is named so, or begins with the length of a JSON header."""
    if path.suffix == ".safetensors" or not path.is_file():
        return True
    try:
        with path.open("rb") as file:
            begin = file.read(9)
    except OSError:
        return True  # whose reader says why
    return begin[8:] == b"{" and int.from_bytes(begin[:8], "little") < path.stat().st_size


def describe(model: IRNet, data: RegionDataset) -> str:
    """Describe a model and its training data in one line."""
    weights = sum(p.numel() for p in model.parameters())
    learned = sum(p.numel() for p in model.parameters() if p.requires_grad)
    return (
        f"{model.config.variant}: {weights:,} weights ({learned:,} learned), {len(data)} training images, "
        f"{len(data.classes)} classes"
    )


def choose_device(name: str) -> torch.device:
    """Choose the device to compute on.

    Args:
        name: A CPU or CUDA device as PyTorch names it, or "auto" for the first GPU if the machine has one.

    Returns:
        The device. A numbered GPU becomes PyTorch's current device.

    Raises:
        InputError: The machine has no such device.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
        if device.type not in ("cpu", "cuda"):
            raise RuntimeError("neither a CPU nor a CUDA device")
        torch.empty(0, device=device)
        if device.type == "cuda" and device.index is not None:
            torch.cuda.set_device(device)  # streams, events and statistics are the current device's
    except (RuntimeError, AssertionError) as error:
        raise InputError("--device", f"{name!r} cannot be used ({str(error).splitlines()[0]})", "use cpu") from error
    return device


def compile_parts(model: IRNet) -> None:
    """Put torch.compile under the heavy parts of the model, in place; the state dict keeps its names."""
    model.backbone.compile()
    # Of the local module what the roll-out calls with few regions and with many.
    for part, names in ((model.local, ("changes", "contexts", "look")), (model.graph, ("read", "write"))):
        for name in names if part is not None else ():
            setattr(part, name, torch.compile(getattr(part, name), dynamic=True))
