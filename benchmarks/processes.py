"""Time of a step of two processes of one thread against that of one, with the same images each, and what is exchanged.

    python benchmarks/processes.py [--parallel fsdp]

Both take turns in one run, so that what else the machine does meets both; it wants two free cores. Prints the medians
of the times, their ratio (1 is ideal: the exchange of gradients costs nothing), and the bytes of a step's gradients.
"""

import argparse
import copy
import os
import time
from collections.abc import Callable
from functools import partial
from statistics import median

import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from irnet import config as settings
from irnet.data.sample import Batch
from irnet.engine import distributed, sharded
from irnet.engine.optim import make_optimizer
from irnet.engine.step import make_scaler, train_step
from irnet.models.irnet import IRNet
from irnet_kernels import EdgeSet

CLASSES, REGIONS, SIZE = 20, 10, 256


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--images", type=int, default=8, help="of a process in a step")
    parser.add_argument("--rounds", type=int, default=15, help="steps of each way")
    parser.add_argument("--parallel", default="ddp", choices=("ddp", "fsdp"), help="as of irnet train")
    options = parser.parse_args()
    store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    mp.start_processes(measure, (store.port, options.images, options.rounds, options.parallel), 2, start_method="spawn")


def measure(rank: int, port: int, images: int, rounds: int, parallel: str) -> None:
    """Take steps alone (rank 0, while the other waits) and together in turn; rank 0 prints the times."""
    torch.set_num_threads(1)
    store = dist.TCPStore("127.0.0.1", port, is_master=False)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=2)
    torch.manual_seed(rank)
    batch, config = batch_of(images), settings.small()
    model = model_of(config)
    size = sum(p.numel() * p.element_size() for p in model.parameters() if p.requires_grad)
    own = copy.deepcopy(model)
    if parallel == "fsdp":
        sharded.shard(model, config.train.amp)
    trained = distributed.parallel(model)
    own_optimizer, optimizer = (make_optimizer(each, config.train) for each in (own, model))
    scaler = make_scaler(torch.device("cpu"), config.train)
    alone, together = [], []
    for _ in range(rounds + 1):
        distributed.wait()
        if rank == 0:
            batch.whole = images
            alone.append(seconds(partial(train_step, own, batch, own_optimizer, scaler, config, 1)))
        distributed.wait()
        batch.whole = 2 * images
        together.append(seconds(partial(train_step, trained, batch, optimizer, scaler, config, 1)))
    if rank == 0:
        one, two = median(alone[1:]), median(together[1:])
        print(f"{parallel}: {images} images a process, {rounds} rounds, load of the machine {os.getloadavg()[0]:.1f}")
        print(f"one process   {1000 * one:8.1f} ms a step")
        print(f"two processes {1000 * two:8.1f} ms a step: {one / two:.2f} of ideal")
        weights = ", and so are the weights" if parallel == "fsdp" else ""
        print(f"gradients     {size / 2**20:8.2f} MiB, exchanged once a step{weights}")
    dist.destroy_process_group()


def seconds(call: Callable[[], object]) -> float:
    """How long a call takes."""
    begin = time.perf_counter()
    call()
    return time.perf_counter() - begin


def batch_of(images: int) -> Batch:
    """Random images of one size, with regions."""
    corners = torch.rand(images * REGIONS, 2) * SIZE / 2
    boxes = torch.cat([corners, corners + 20 + torch.rand(images * REGIONS, 2) * (SIZE / 2 - 20)], 1)
    labels = torch.randint(0, CLASSES, (images * REGIONS,))
    ptr = torch.arange(0, images * REGIONS + 1, REGIONS)
    return Batch([torch.randn(3, SIZE, SIZE) for _ in range(images)], boxes, ptr, labels, [""] * images)


def model_of(config: settings.Config) -> IRNet:
    """The model of --small, the same in both processes."""
    torch.manual_seed(0)
    nodes = torch.arange(CLASSES)
    edges = EdgeSet.from_edges([(nodes, nodes.roll(1), torch.ones(CLASSES))] * 2, CLASSES, normalize=True)
    return IRNet(config.model, CLASSES, edges).train()


if __name__ == "__main__":
    main()
