"""The order of an epoch and the batches in it, the same whatever the number of workers. No data set's format."""

import hashlib
from collections import defaultdict
from collections.abc import Iterator

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from ..config import Config, DataConfig
from ..errors import InputError
from .dataset import RegionDataset
from .sample import Batch, Sample, collate
from .transforms import left_right_swap, prepare, resized_size
from .workers import Parcel, received, start


def batches(
    dataset: RegionDataset,
    config: Config,
    *,
    train: bool,
    epoch: int = 0,
    start_batch: int = 0,
    size: int | None = None,
    pin_memory: bool = False,
) -> Iterator[Batch]:
    """The batches of one epoch: ceil(N / size) of them, of which only the last may be smaller.

    config       train.batch_size; train.workers, the processes that decode (0 decodes here), which never change what
                 comes out; data.short_side and data.long_side, see `transforms.resize`
    train        shuffled by train.seed, images of one resized size in a batch, for they share a ConvNet pass, and with
                 data.flip each mirrored with probability 1/2 (classes by `left_right_swap`); otherwise in the data
                 set's order, as they are, and no more than train.limit_batches
    start_batch  leave out the batches before this one, without decoding them (for a run that resumes)
    size         images of a batch in place of train.batch_size, by which train.limit_batches counts all the same
    pin_memory   page-locked host memory; only useful where a CUDA device is the target

    Order and flips follow from (seed, epoch, index) alone; the global random state is neither read nor changed.
    InputError as the data set raises it, from workers too, when the batch's turn comes, and for a batch that a worker
    cannot send; RuntimeError for a worker that was killed.
    """
    batch_size, workers, count = config.train.batch_size, config.train.workers, len(dataset)
    if batch_size < 1:
        raise InputError("--batch-size", f"{batch_size} images are no batch", "give 1 or more")
    if workers < 0:
        raise InputError("--workers", f"{workers} is not a number of processes", "give 0 or more")
    generator = _generator(config.train.seed, epoch)
    flips = torch.rand(count, generator=generator) < 0.5
    if train:
        order = torch.randperm(count, generator=generator).tolist()
        sides = config.data.short_side, config.data.long_side
        sizes = [resized_size(height, width, *sides) for height, width in dataset.image_sizes().tolist()]
        plan = _group(order, sizes, batch_size, generator)
    else:
        limit = config.train.limit_batches * batch_size or count
        plan = _chunks(list(range(min(count, limit))), size or batch_size)
    swap = left_right_swap(dataset.classes) if train and config.data.flip else None
    loader = DataLoader(
        _Prepared(dataset, config.data, flips, swap),
        batch_sampler=plan[start_batch:],
        num_workers=workers,
        collate_fn=_parcel if workers else _pack,
        worker_init_fn=start if workers else None,
        pin_memory=pin_memory,
        generator=generator,  # or DataLoader would draw its workers' seeds from the global random state
    )
    return _unpacked(loader)


def _generator(seed: int, epoch: int) -> torch.Generator:
    # Hashed, so that (seed, epoch + 1) and (seed + 1, epoch) are not the same stream.
    digest = hashlib.blake2b(f"{seed} {epoch}".encode(), digest_size=8).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest, "big") >> 1)


def _chunks(order: list[int], batch_size: int) -> list[list[int]]:
    return [order[i : i + batch_size] for i in range(0, len(order), batch_size)]


def _group(
    order: list[int], sizes: list[tuple[int, int]], batch_size: int, generator: torch.Generator
) -> list[list[int]]:
    """`order` in batches of one size each, as far as that goes; what is left over is batched by nearest shape."""
    waiting, full = defaultdict(list), []
    for i in order:
        bucket = waiting[sizes[i]]
        bucket.append(i)
        if len(bucket) == batch_size:
            full.append(bucket[:])
            bucket.clear()
    shapes = sorted(waiting, key=lambda size: (size[0] / size[1], size))
    rest = _chunks([i for shape in shapes for i in waiting[shape]], batch_size)
    last = [rest.pop()] if rest and len(rest[-1]) < batch_size else []
    full += rest
    # Buckets fill in an order that goes by how common a size is; shuffled, no size gathers at an epoch's end.
    return [full[i] for i in torch.randperm(len(full), generator=generator).tolist()] + last


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
    batch = collate(samples)
    shapes = [tuple(image.shape) for image in batch.images]
    pixels = torch.cat([image.flatten() for image in batch.images])
    return pixels, shapes, batch.boxes, batch.ptr, batch.labels, batch.names, batch.attributes


def _parcel(samples: list[Sample | InputError]) -> Parcel:
    return Parcel(_pack(samples))


def _unpacked(loader: DataLoader) -> Iterator[Batch]:
    for packed in received(loader):
        if isinstance(packed, InputError):
            raise packed
        pixels, shapes, *rest = packed
        parts = pixels.split([channels * height * width for channels, height, width in shapes])
        yield Batch([part.view(tuple(shape)) for part, shape in zip(parts, shapes, strict=True)], *rest)
