"""Cases of the data suite: from files to batches, generated scenes, derived class graphs. All on the host; no model."""

import tempfile
import weakref
import zlib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from irnet.class_graphs.annotations import derive_class_graph
from irnet.config import Config, DataConfig, TrainConfig
from irnet.data.loader import batches
from irnet.data.registry import open_dataset
from irnet.data.sample import Batch
from irnet.scenes.generator import World, generate

from ..case import Implementation, Setup, Work, case

FLOAT32 = {"cuda": ("float32",)}  # nothing here depends on the dtype


@case(
    "data",
    cpu={"images": 64, "batch": 8, "size": 256, "short": 600},
    cuda={"images": 256, "batch": 8, "size": 256, "short": 600},
    gate={},
    dtypes=FLOAT32,
)
def load_batches(setup: Setup) -> Work:
    """An epoch of batches from image files, resized to a shorter side (0: as they are), by the number of workers."""
    workers = {f"workers={count}": count for count in (0, 2)}
    folder = tempfile.TemporaryDirectory(prefix="irnet-bench-")
    root = Path(folder.name) / "scenes"
    generate(root, train=setup.images, val=2, seed=setup.seed, world=World(setup.size), progress=False)
    dataset = open_dataset(DataConfig(name="scenes", root=str(root)), "train")

    def loader(count: int) -> Implementation:
        train = TrainConfig(batch_size=setup.batch, workers=count, seed=setup.seed)
        config = Config(data=DataConfig(short_side=setup.short, long_side=0, flip=True), train=train)
        return Implementation(lambda: checksum(batches(dataset, config, train=True)))

    loaders = {name: loader(count) for name, count in workers.items()}
    work = Work([], loaders, items=setup.images, unit="images", reference="workers=0")
    weakref.finalize(work, folder.cleanup)
    return work


@case("data", cpu={"images": 14, "size": 192}, gate={}, dtypes=FLOAT32)
def scene_generation(setup: Setup) -> Work:
    """Generated training scenes, and two held-out ones, written as image files and annotations."""

    def write() -> Tensor:
        with tempfile.TemporaryDirectory(prefix="irnet-bench-") as folder:
            root = Path(folder) / "scenes"
            generate(root, train=setup.images, val=2, seed=setup.seed, world=World(setup.size), progress=False)
            return torch.tensor([zlib.crc32(path.read_bytes()) for path in sorted(root.rglob("*.*"))])

    return Work([], {"irnet": Implementation(write)}, items=setup.images + 2, unit="images", reference="irnet")


@case(
    "data",
    cpu={"images": 10_000, "regions": 7, "classes": 80},
    gate={"images": 40, "regions": 3, "classes": 12},
    dtypes=FLOAT32,
)
def class_graph(setup: Setup) -> Work:
    """A class graph derived from the labels of images with so many regions on the average."""
    counts = torch.randint(0, 2 * setup.regions + 1, (setup.images,), generator=setup.generator)
    labels = torch.randint(setup.classes, (int(counts.sum()),), generator=setup.generator)
    names = [str(index) for index in range(setup.classes)]
    groups = [str(index % 12) for index in range(setup.classes)]
    images = Labels(names, groups, list(labels.split(counts.tolist())))

    def derive() -> Tensor:
        relations = derive_class_graph(images).relations.values()
        return torch.cat([torch.stack([src, dst, weight.double()]) for src, dst, weight in relations], 1)

    return Work([], {"irnet": Implementation(derive)}, items=setup.images, unit="images", reference="irnet")


@dataclass
class Labels:
    """Annotations without images: what derive_class_graph wants."""

    classes: list[str]
    supercategories: list[str]
    labels: list[Tensor]

    def image_labels(self) -> list[Tensor]:
        return self.labels


def checksum(epoch: Iterable[Batch]) -> Tensor:
    """int64: a number for every image, and for the boxes and the labels of every batch, that any other bit changes."""
    numbers = []
    for batch in epoch:
        numbers += [zlib.crc32(tensor.numpy()) for tensor in (*batch.images, batch.boxes, batch.labels)]
    return torch.tensor(numbers)
