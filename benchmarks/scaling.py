"""Images per second on many GPUs, on paper: from the time of an image on one, gradient bytes, and a link's bandwidth.

    python benchmarks/scaling.py --ms 100 --network 25

A step takes as long as the process with most work computes (shares by work, of images whose regions are drawn), and
what its backward pass, two thirds of that, does not hide of the exchange. Each process sends and receives 2 (N - 1) / N
of the gradients in a ring; the last bucket is never hidden. Nothing is measured: --ms is what one GPU takes an image.
"""

import argparse
import random
from statistics import fmean

import torch

from irnet.config import ModelConfig
from irnet.data.loader import REGION, shared
from irnet.models.irnet import IRNet
from irnet_kernels import EdgeSet

PIXELS, REGIONS = 600 * 1000, 7.3  # of an image, and the mean of its regions: COCO's
BUCKET = 25 * 2**20  # bytes, of DistributedDataParallel
IN_NODE = 8  # GPUs of a machine


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--ms", type=float, default=100.0, help="of a step's image on one GPU")
    parser.add_argument("--nvlink", type=float, default=200.0, help="GB/s within a machine, of a ring")
    parser.add_argument("--network", type=float, default=25.0, help="GB/s between machines, of a ring")
    options = parser.parse_args()
    size = gradient_bytes()
    print(f"gradients {size / 1e6:.0f} MB, {options.ms:g} ms an image")
    print("GPUs  images a GPU  compute, ms  exchange, ms  step, ms  images/s  of ideal")
    for gpus in (1, 8, 64):
        link = 1e9 * (options.nvlink if gpus <= IN_NODE else options.network)
        for images in (1, 2, 8):
            compute = options.ms / 1000 * images * waiting(gpus, images)
            exchange = 2 * (gpus - 1) / gpus * size / link
            step = compute + (max(exchange - compute * 2 / 3, BUCKET / link) if gpus > 1 else 0)
            rate, ideal = gpus * images / step, gpus / (options.ms / 1000)
            print(
                f"{gpus:4}  {images:12}  {1000 * compute:11.1f}  {1000 * exchange:12.1f}  {1000 * step:8.1f}"
                f"  {rate:8.1f}  {rate / ideal:8.2f}"
            )


def waiting(gpus: int, images: int, steps: int = 200) -> float:
    """The work of the process that has most, as a multiple of the mean; averaged over steps of drawn images."""
    draw, ratios = random.Random(0), []
    for _ in range(steps):
        work = [PIXELS + REGION * round(draw.expovariate(1 / REGIONS)) for _ in range(gpus * images)]
        shares = [sum(work[i] for i in share) for share in shared(work, gpus)]
        ratios.append(max(shares) / fmean(shares))
    return fmean(ratios)


def gradient_bytes(classes: int = 80) -> int:
    """The bytes of all gradients of the paper's model with both modules."""
    edges = EdgeSet.from_edges([(torch.tensor([0]), torch.tensor([1]), torch.ones(1))] * 2, classes, normalize=True)
    with torch.device("meta"):
        model = IRNet(ModelConfig(), classes, edges)
    return sum(4 * p.numel() for p in model.parameters() if p.requires_grad)


if __name__ == "__main__":
    main()
