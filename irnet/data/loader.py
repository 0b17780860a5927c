"""The order of an epoch and the batches in it, the same whatever the number of workers, and who has which part of them.
No data set's format."""

import bisect
import hashlib
import itertools
import math
from collections import defaultdict
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from ..config import Config, DataConfig, TrainConfig
from ..errors import InputError
from .dataset import RegionDataset
from .sample import Batch, Sample, collate
from .transforms import left_right_swap, prepare, resized_size
from .workers import Parcel, received, start

# Pixels that take as long as a region: multiplications of the paper's model for a region (block 4 on its patch, all
# reads and writes) over those for a pixel (the ConvNet and the convolutions of the memory), about 2.4e9 to 1.8e5.
REGION = 13_000
BLANK = 64  # pixels on the side of the image that stands for none


def batches(
    dataset: RegionDataset,
    config: Config,
    *,
    train: bool,
    epoch: int = 0,
    start_batch: int = 0,
    size: int | None = None,
    pin_memory: bool = False,
    share: tuple[int, int] = (0, 1),
) -> Iterator[Batch]:
    """The batches of one epoch. Without budgets ceil(N / size) of them, of which only the last may be smaller.

    config       train.batch_size; in training the budgets train.max_batch_pixels and train.max_batch_regions, which a
                 batch of several images keeps within; train.workers, the processes that decode (0 decodes here), which
                 never change what comes out; data.short_side and data.long_side, see `transforms.resize`
    train        shuffled by train.seed, images of one resized size in a batch, for they share a ConvNet pass, and with
                 data.flip each mirrored with probability 1/2 (classes by `left_right_swap`); otherwise in the data
                 set's order, as they are, and no more than train.limit_batches
    start_batch  leave out the batches before this one, without decoding them (for a run that resumes)
    size         images of a batch in place of train.batch_size, by which train.limit_batches counts all the same
    pin_memory   page-locked host memory; only useful where a CUDA device is the target
    share        (k, n): process k of n that work together. In training each has a part of every batch, by the work that
                 its images are, see `shared`; one without any has a blank image without regions and without a name,
                 whose gradients are zero. Otherwise it has every n-th batch from the k-th on

    Order and flips follow from (seed, epoch, index) alone; the global random state is neither read nor changed.
    InputError as the data set raises it, from workers too, when the batch's turn comes, and for a batch that a worker
    cannot send; RuntimeError for a worker that was killed.
    """
    batch_size, workers = config.train.batch_size, config.train.workers
    if batch_size < 1:
        raise InputError("--batch-size", f"{batch_size} images are no batch", "give 1 or more")
    if workers < 0:
        raise InputError("--workers", f"{workers} is not a number of processes", "give 0 or more")
    generator, flips = _drawn(dataset, config, epoch)
    if train:
        sizes = _sizes(dataset, config)
        whole = _training_batches(dataset, sizes, config, generator)[start_batch:]
        plan = _parts_of(whole, share, sizes, dataset)
    else:
        limit = config.train.limit_batches * batch_size or len(dataset)
        whole = _chunks(list(range(min(len(dataset), limit))), size or batch_size)[start_batch:]
        plan = whole = whole[share[0] :: share[1]]
    swap = left_right_swap(dataset.classes) if train and config.data.flip else None
    loader = DataLoader(
        _Prepared(dataset, config.data, flips, swap),
        batch_sampler=plan,
        num_workers=workers,
        collate_fn=_parcel if workers else _pack,
        worker_init_fn=start if workers else None,
        pin_memory=pin_memory,
        generator=generator,  # or DataLoader would draw its workers' seeds from the global random state
    )
    return _unpacked(loader, [len(batch) for batch in whole])


def batch_images(train: TrainConfig, height: int, width: int) -> int:
    """The images of this size that a batch of training has at the most, by its number of images and of pixels."""
    pixels = height * width * train.batch_size
    return max(1, min(pixels, train.max_batch_pixels or pixels) // (height * width))


def images_of_any_size(dataset: RegionDataset, config: Config) -> int:
    """The images that a batch of training may have if all are as large as the data set's largest."""
    if not config.train.max_batch_pixels:  # sizes may have to be read
        return config.train.batch_size
    return min(batch_images(config.train, *size) for size in set(_sizes(dataset, config)))


def batches_within(dataset: RegionDataset, config: Config, epoch: int, images: int) -> tuple[int, int]:
    """How many batches of training lie within the first `images` images of an epoch, and how many images they have."""
    if not images:
        return 0, 0
    generator, _ = _drawn(dataset, config, epoch)
    plan = _training_batches(dataset, _sizes(dataset, config), config, generator)
    ends = [0, *itertools.accumulate(map(len, plan))]
    done = bisect.bisect_right(ends, images) - 1
    return done, ends[done]


def _drawn(dataset: RegionDataset, config: Config, epoch: int) -> tuple[torch.Generator, Tensor]:
    """The random numbers of an epoch: which images are mirrored, bool [N], and what draws the order after that."""
    # Hashed, so that (seed, epoch + 1) and (seed + 1, epoch) are not the same stream.
    digest = hashlib.blake2b(f"{config.train.seed} {epoch}".encode(), digest_size=8).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(digest, "big") >> 1)
    return generator, torch.rand(len(dataset), generator=generator) < 0.5


def _sizes(dataset: RegionDataset, config: Config) -> list[tuple[int, int]]:
    """(H, W) of every image as the model takes it."""
    sides = config.data.short_side, config.data.long_side
    return [resized_size(height, width, *sides) for height, width in dataset.image_sizes().tolist()]


def _chunks(order: list[int], batch_size: int) -> list[list[int]]:
    return [order[i : i + batch_size] for i in range(0, len(order), batch_size)]


def _training_batches(
    dataset: RegionDataset, sizes: list[tuple[int, int]], config: Config, generator: torch.Generator
) -> list[list[int]]:
    """The images of every batch of an epoch, all of one size as far as that goes; what is left over is batched by
    nearest shape."""
    train, count = config.train, len(dataset)
    limits = train.batch_size, train.max_batch_pixels or math.inf, train.max_batch_regions or math.inf
    regions = [len(labels) for labels in dataset.image_labels()] if train.max_batch_regions else [0] * count
    costs = [(1, height * width, own) for (height, width), own in zip(sizes, regions, strict=True)]
    waiting: defaultdict[tuple[int, int], _Filling] = defaultdict(lambda: _Filling(costs, limits))
    full = []
    for i in torch.randperm(count, generator=generator).tolist():
        full += waiting[sizes[i]].add(i)
    rest = _Filling(costs, limits)
    for size in sorted(waiting, key=lambda size: (size[0] / size[1], size)):
        for i in waiting[size].images:
            full += rest.add(i)
    last = [rest.images] if rest.images else []
    # Buckets fill in an order that goes by how common a size is; shuffled, no size gathers at an epoch's end.
    return [full[i] for i in torch.randperm(len(full), generator=generator).tolist()] + last


class _Filling:
    """A batch that takes images until it is full, or the next would exceed one of its limits."""

    def __init__(self, costs: list[tuple[int, int, int]], limits: tuple[float, float, float]):
        self.costs, self.limits = costs, limits
        self.images: list[int] = []
        self.sums = [0, 0, 0]  # of the images' costs

    def add(self, image: int) -> list[list[int]]:
        """Take an image; returns the batches that are complete now."""
        complete = []
        if self.images and any(a + b > c for a, b, c in zip(self.sums, self.costs[image], self.limits, strict=True)):
            complete.append(self._flush())
        self.images.append(image)
        self.sums = [a + b for a, b in zip(self.sums, self.costs[image], strict=True)]
        if len(self.images) == self.limits[0]:
            complete.append(self._flush())
        return complete

    def _flush(self) -> list[int]:
        images, self.images, self.sums = self.images, [], [0, 0, 0]
        return images


def _parts_of(
    plan: list[list[int]], share: tuple[int, int], sizes: list[tuple[int, int]], dataset: RegionDataset
) -> list[list[int]]:
    """Of every batch the images that process k of n works on, for `share` (k, n)."""
    process, processes = share
    if processes == 1:
        return plan
    regions = [len(labels) for labels in dataset.image_labels()]
    work = [height * width + REGION * count for (height, width), count in zip(sizes, regions, strict=True)]
    return [[batch[at] for at in shared([work[i] for i in batch], processes)[process]] for batch in plan]


def shared(work: Sequence[int], processes: int) -> list[list[int]]:
    """Share items among processes, so that all have about the same work.

    Args:
        work: How much work each item is.
        processes: How many processes there are.

    Returns:
        The positions of every process's items, in rising order. The item with most work is given away first, each to
        the process that has least so far; of equal ones the first.
    """
    shares, sums = [[] for _ in range(processes)], [0] * processes
    for item in sorted(range(len(work)), key=lambda i: -work[i]):
        least = sums.index(min(sums))
        shares[least].append(item)
        sums[least] += work[item]
    return [sorted(share) for share in shares]


class _Prepared(Dataset):
    """Prepared samples. Gives an InputError back in place of raising it: DataLoader re-raises by its own rules."""

    def __init__(self, dataset: RegionDataset, config: DataConfig, flips: Tensor, swap: Tensor | None):
        self.dataset, self.sides, self.flips, self.swap = dataset, (config.short_side, config.long_side), flips, swap

    def __getitem__(self, i: int) -> Sample | InputError:
        try:
            return prepare(self.dataset[i], *self.sides, self.swap if self.flips[i] else None)
        except InputError as error:
            return error


def _pack(samples: list[Sample | InputError]) -> tuple | InputError:
    """A batch with its images in one tensor, for each tensor that a worker sends takes one of 1024 file descriptors."""
    for sample in samples:
        if isinstance(sample, InputError):
            return sample
    batch = collate(samples) if samples else blank()
    shapes = [tuple(image.shape) for image in batch.images]
    pixels = torch.cat([image.flatten() for image in batch.images])
    return pixels, shapes, batch.boxes, batch.ptr, batch.labels, batch.names, batch.attributes


def blank() -> Batch:
    """What a process works on that has no image: one without regions and without a name, whose gradients are zero."""
    none = torch.empty(0, dtype=torch.int64)
    return Batch([torch.zeros(3, BLANK, BLANK)], torch.empty(0, 4), torch.tensor([0, 0]), none, [])


def _parcel(samples: list[Sample | InputError]) -> Parcel:
    return Parcel(_pack(samples))


def _unpacked(loader: DataLoader, wholes: list[int]) -> Iterator[Batch]:
    """The batches of `loader`, which are those of `wholes` images or a process's parts of them."""
    for packed, whole in zip(received(loader), wholes, strict=True):
        if isinstance(packed, InputError):
            raise packed
        pixels, shapes, *rest = packed
        parts = pixels.split([channels * height * width for channels, height, width in shapes])
        yield Batch([part.view(tuple(shape)) for part, shape in zip(parts, shapes, strict=True)], *rest, whole)
