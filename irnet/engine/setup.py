"""From a config to a data set, a class graph and a model. The only place that knows data sets by name."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from irnet_kernels import EdgeSet

from ..config import Config, DataConfig, ModelConfig
from ..data.coco import CocoDataset
from ..data.graphs import ClassGraph, derive_class_graph, load_class_graph
from ..data.layouts import Share, choose_split
from ..errors import InputError
from ..graph import EDGE_TENSORS
from ..model import IRNet


def open_dataset(config: DataConfig, part: str, require_images: bool = True) -> CocoDataset:
    """The training ("train") or held-out ("val") part of the configured data set."""
    if not config.root:
        raise InputError("--data-root", "is not given", "name the folder of the data set")
    split, shared = choose_split(Path(config.root), part, config.train_split, config.val_split)
    data = CocoDataset(
        config.root,
        split,
        max_regions=(config.max_regions or None) if part == "train" else None,
        share=Share(part == "val", config.val_share, config.split_seed) if shared else None,
        orientation=config.orientation,
        max_pixels=config.max_pixels,
        require_images=require_images,
    )
    if require_images:
        data.warn_of_turned_images()
    return data


def sizes(config: DataConfig) -> dict[str, int | None]:
    """The resizing arguments of the loader."""
    return {"short": config.short_side or None, "long": config.long_side or None}


def class_graph(config: DataConfig, train: CocoDataset) -> ClassGraph:
    """The named class graph, else the data set's own, else one derived from its training annotations."""
    path = Path(config.class_graph or Path(config.root) / "class_graph.json")
    if config.class_graph or path.exists():
        return load_class_graph(path, train.classes)
    return derive_class_graph(train)


def build_model(config: Config, train: CocoDataset, pretrained: bool = True) -> IRNet:
    """A fresh model for the training set's classes; its initial weights follow from train.seed alone.

    pretrained  read model.backbone_weights; a run that goes on has no need of them
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
        return IRNet(model, len(train.classes), edges, vectors)


def restore_model(config: ModelConfig, classes: int, state: dict[str, Tensor]) -> IRNet:
    """The model that a checkpoint's tensors belong to; its class graph is among them."""
    edges = None
    if "graph." + EDGE_TENSORS[0] in state:
        tensors = [state["graph." + name] for name in EDGE_TENSORS]
        if len(tensors[3]) != len(tensors[0]):
            raise InputError("the checkpoint", "holds its class graph as older versions of irnet did", "train again")
        edges = EdgeSet(classes, (len(tensors[0]) - 1) // classes, *tensors)
    model = IRNet(dataclasses.replace(config, backbone_weights=""), classes, edges, state.get("graph.word_vectors"))
    model.load_state_dict(state)
    return model


def same_classes(
    found: list[str], wanted: list[str], where: str | Path, cure: str = "use the data set that the run was trained on"
) -> None:
    """InputError, naming `where`, unless the data's classes are those wanted, in their order."""
    if found == wanted:
        return
    extra, missing = sorted(set(found) - set(wanted)), sorted(set(wanted) - set(found))
    trouble = f"the data's {len(found)} classes are not the {len(wanted)} expected"
    trouble += "".join(f", {what} {names[0]!r}" for what, names in (("new:", extra), ("missing:", missing)) if names)
    if not extra and not missing:
        trouble += ": they are in another order"
    raise InputError(where, trouble, cure)


def some_regions(data: CocoDataset) -> None:
    """InputError for a split in which there is no region to learn or to judge."""
    if not sum(map(len, data.image_labels())):
        trouble = f"its {len(data)} images hold no region"
        skipped = ", ".join(f"{count} {reason}" for reason, count in data.skipped.items())
        trouble += f" (skipped: {skipped})" if skipped else ""
        raise InputError(data.path, trouble, "choose a split with annotated boxes")


def read_word_vectors(path: str, classes: Sequence[str]) -> Tensor | None:
    """`vectors` float [C, V] of a safetensors file, one row per class in class order; None for no path."""
    if not path:
        return None
    try:
        vectors = load_file(path)["vectors"].float()
    except (OSError, SafetensorError, KeyError) as error:
        raise InputError(path, f"has no readable tensor `vectors` ({error})", "give a safetensors file") from error
    if vectors.dim() != 2 or len(vectors) != len(classes) or not vectors.isfinite().all():
        trouble = f"`vectors` is {list(vectors.shape)}, not finite [{len(classes)}, V]"
        raise InputError(path, trouble, "give one row per class, in the data set's order")
    return vectors


def choose_device(name: str) -> torch.device:
    """The named CPU or CUDA device, or for "auto" the first GPU where there is one."""
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
    parts: list[nn.Module] = [m for m in (model.local, model.graph) if m is not None]
    for part in parts:
        part.read = torch.compile(part.read, dynamic=True)
        part.write = torch.compile(part.write, dynamic=True)
