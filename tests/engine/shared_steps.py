"""Steps in float64 on images of several sizes, some without regions: what one of several processes does in a test."""

import dataclasses
import gc
import json
from collections.abc import Iterable
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor, nn

from irnet.config import Config, DataConfig, ModelConfig, TrainConfig
from irnet.data.loader import batches
from irnet.data.sample import Sample
from irnet.engine import distributed, sharded
from irnet.engine.ema import Average
from irnet.engine.fit import made_up_edges
from irnet.engine.memory import Scene, Step
from irnet.engine.memory_shared import planned_share, share_of
from irnet.engine.optim import make_optimizer, make_scheduler
from irnet.engine.step import gradients, make_scaler, train_step
from irnet.models.irnet import IRNet
from irnet_kernels import EdgeSet, counts

STEPS, IMAGES = 5, 19  # batches of 8, 8, 3, 8 and 8 images
SIZES = [(64, 80), (80, 64), (64, 96)]


class Ragged:
    """Random images; of three in a row the first has no region, the others one or more."""

    classes, supercategories, skipped = ["a", "b", "c"], ["", "", ""], {}
    root = path = Path("ragged")
    split = "train"

    def __len__(self) -> int:
        return IMAGES

    def __getitem__(self, i: int) -> Sample:
        generator = torch.Generator().manual_seed(i)
        height, width = SIZES[i % 2 + i % 5 // 4]
        image = torch.randint(0, 256, (3, height, width), dtype=torch.uint8, generator=generator)
        labels = self.image_labels()[i]
        corners = 30 * torch.rand(len(labels), 2, generator=generator)
        boxes = torch.cat([corners, corners + 10 + 20 * torch.rand(len(labels), 2, generator=generator)], 1)
        return Sample(image, boxes, labels, f"{i}")

    def image_sizes(self) -> Tensor:
        return torch.tensor([SIZES[i % 2 + i % 5 // 4] for i in range(IMAGES)])

    def image_labels(self) -> list[Tensor]:
        return [torch.arange(i % 3 * (1 + i % 4)) % 3 for i in range(IMAGES)]


def settings(variant: str, **train) -> Config:
    sizes = {"memory_channels": 4, "memory_size": 4, "hidden": 8, "graph_channels": 4, "graph_layers": 1}
    sizes |= {"backbone": "small", "backbone_channels": 4, "patch_size": 2, "iterations": 2}
    train = {"batch_size": 8, "workers": 0, "lr": 0.05, "steps": STEPS, "lr_steps": [], **train}
    return Config(ModelConfig(variant=variant, **sizes), data=DataConfig(short_side=0), train=TrainConfig(**train))


def model_of(config: Config) -> IRNet:
    torch.manual_seed(0)
    triple = torch.tensor([0, 1]), torch.tensor([1, 2]), torch.ones(2, dtype=torch.float64)
    edges = EdgeSet.from_edges([triple], 3, normalize=True)
    return IRNet(config.model, 3, edges if config.model.variant in ("global", "full") else None).double().train()


def steps(variant: str, output: Path | None = None, **train) -> dict:
    """Take five steps of this process's share; returns the weights, and of every step the images, the regions, the
    bytes that were exchanged and those of the gradients. Of a group the results are written to `output`.RANK, too."""
    config = settings(variant, **train)
    model = model_of(config)
    model.set_grad_checkpointing(config.train.grad_checkpointing)
    if config.train.parallel == "fsdp":
        sharded.shard(model, config.train.amp)
    trained = distributed.parallel(model)
    optimizer, scaler = make_optimizer(model, config.train), make_scaler(torch.device("cpu"), config.train)
    scheduler = make_scheduler(optimizer, config.train)
    exchanged, found = [], []
    scatter = "reduce_scatter_single" if hasattr(dist, "reduce_scatter_single") else "reduce_scatter_tensor"
    real, real_scatter = dist.all_reduce, getattr(dist, scatter)

    def all_reduce(tensor, *more, **options):
        if tensor.numel() > 1:  # a norm is one number
            exchanged.append(tensor.numel() * tensor.element_size())
        return real(tensor, *more, **options)

    def reduce_scatter(**options):
        given = options["input" if "input" in options else "input_tensor"]
        exchanged.append(given.numel() * given.element_size())
        return real_scatter(**options)

    dist.all_reduce = all_reduce
    setattr(dist, scatter, reduce_scatter)
    for number in range(1, STEPS + 1):
        if number % 3 == 1:
            stream = batches(Ragged(), config, train=True, epoch=number // 3, share=distributed.share())
        batch = next(stream)
        batch.images = [image.double() for image in batch.images]
        exchanged.clear()
        train_step(trained, batch, optimizer, scaler, config, number)
        scheduler.step()
        sizes = [p.element_size() * p.numel() // len(p) * padded_rows(p) for p in model.parameters() if p.requires_grad]
        found.append([batch.names, len(batch.labels), sum(exchanged), sum(sizes)])
    weights = sharded.whole(model) if distributed.is_sharded(model) else model
    result = {"weights": weights.state_dict(), "steps": found}
    if output is not None:
        torch.save(result, f"{output}.{distributed.rank()}")
    return result


def padded_rows(parameter: Tensor) -> int:
    """The rows that are exchanged of a weight's gradient: of a sharded one as many of each process."""
    rows, count = len(parameter), distributed.count()
    return -(-rows // count) * count if distributed.is_sharded(parameter) else rows


def run(variant: str, output: str, train: str) -> None:
    """`steps` of a process that torchrun has started; `train` holds settings as JSON."""
    torch.set_num_threads(1)
    with distributed.joined("cpu"):
        steps(variant, Path(output), **json.loads(train))


def run_held(output: str) -> None:
    """Write to `output`.RANK what bytes a process holds after the gradients of a step, behind one with momentum."""
    torch.set_num_threads(1)
    with distributed.joined("cpu"):
        config = settings("full", parallel="fsdp")
        sizes = {"memory_channels": 16, "hidden": 256, "graph_channels": 16, "backbone_channels": 16}
        config = dataclasses.replace(config, model=dataclasses.replace(config.model, **sizes))
        model = model_of(config)
        whole = sum(p.nbytes for p in model.parameters())
        rows = sum(p.nbytes // len(p) * -(-len(p) // distributed.count()) for p in model.parameters())
        sharded.shard(model, config.train.amp)
        optimizer, scaler = make_optimizer(model, config.train), make_scaler(torch.device("cpu"), config.train)
        batch = next(batches(Ragged(), config, train=True, share=distributed.share()))
        batch.images = [image.double() for image in batch.images]
        train_step(model, batch, optimizer, scaler, config, 1)
        gradients(model, batch, optimizer, scaler, config, 2)
        del batch
        gc.collect()
        held = {
            "parameters": bytes_of(p.to_local() for p in model.parameters()),
            "gradients": bytes_of(p.grad.to_local() for p in model.parameters()),
            "moments": bytes_of(state["momentum_buffer"].to_local() for state in optimizer.state.values()),
            "buffers": bytes_of(model.buffers()),
            "all": bytes_of(thing for thing in gc.get_objects() if type(thing) in (Tensor, nn.Parameter)),
            "whole": whole,
            "rows": rows,
        }
        Path(f"{output}.{distributed.rank()}").write_text(json.dumps(held))


def bytes_of(tensors: Iterable[Tensor]) -> int:
    """The bytes of all storages that tensors lie in, each once."""
    return sum({(storage := t.untyped_storage()).data_ptr(): storage.nbytes() for t in tensors}.values())


def run_peaks(output: str, train: str) -> None:
    """Write to `output`.RANK the peak of a step of one of four processes in bytes, as it is planned and as it is.

    The least of some steps counts: gloo's threads let go of what they have exchanged sooner or later.
    """
    torch.set_num_threads(1)
    with distributed.joined("cpu"):
        config = settings("full", **json.loads(train))
        sizes = {"memory_channels": 32, "hidden": 256, "graph_channels": 32, "backbone_channels": 16}
        config = dataclasses.replace(config, model=dataclasses.replace(config.model, **sizes))
        scene = Scene(96, 96, (6,), 8, made_up_edges(8))
        plan = planned_share(config, scene, distributed.count())
        own = Step(share_of(config, scene, distributed.count()), scene, False, torch.device("cpu"))
        sharded.shard(own.model, config.train.amp)
        own.average = Average(own.model, config.train.ema) if config.train.ema else None
        own.optimizer = make_optimizer(own.model, config.train)
        present = []

        def step():
            train_step(own.model, own.batch, own.optimizer, own.scaler, own.config, 2)
            present.append(sum(map(bytes_of, map(list, held_by(own).values()))))

        peak = min(counts.count(step, torch.device("cpu")).peak_allocated_bytes for _ in range(4))
        found = {"planned": plan.total, "real": present[-1] + peak + own.waiting_bytes, "by": plan.bytes}
        Path(f"{output}.{distributed.rank()}").write_text(json.dumps(found))


def held_by(step: Step) -> dict:
    """What is there before a step, of tensors of which each process holds some rows those."""
    local = lambda tensor: tensor.to_local() if distributed.is_sharded(tensor) else tensor  # noqa: E731
    return {name: list(map(local, tensors)) for name, tensors in step.present().items()}
