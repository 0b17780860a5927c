"""How much Winograd's tiles of two and of four outputs round in float32: `python benchmarks/winograd.py`.

Prints, for 3 x 3 layers of the model, the products that a cell takes and the largest errors of the result and of the
weight's gradient, as parts of what irnet_kernels.testing allows (1 is the most). The tiles are made here from their
points, with the sums of csrc/cpu/winograd_kernel.cpp as far as PyTorch's products allow; nothing is timed.
"""

from collections.abc import Iterator

import numpy as np
import torch
from tabulate import tabulate
from torch import Tensor
from torch.nn import functional as F

from irnet_kernels.testing import accuracy

INFINITY = float("inf")
TWO, FOUR = (0, 1, -1, INFINITY), (0, 1, -1, 2, -0.5, INFINITY)  # the points of F(2, 3) and of F(4, 3)
WAYS = {"F(2, 3)": (TWO, TWO), "F(4, 3) across": (TWO, FOUR), "F(4, 3)": (FOUR, FOUR)}  # down and across
SIZES = {  # maps, inputs, outputs, height, width
    "context, 600 x 800": (1, 512, 512, 38, 50),
    "block 3, 400 x 512": (1, 256, 256, 25, 32),
    "three maps of odd size": (3, 256, 256, 31, 33),
    "patches": (32, 512, 512, 7, 7),
}


def main() -> None:
    rows = []
    for name, (maps, inputs, outputs, height, width) in SIZES.items():
        torch.manual_seed(0)
        x, weight = torch.randn(maps, inputs, height, width), torch.randn(outputs, inputs, 3, 3) / (9 * inputs) ** 0.5
        grad = torch.randn(maps, outputs, height, width)
        exact = convolution(x.double(), weight.double(), grad.double())
        chained = convolution(*(t.to(memory_format=torch.channels_last) for t in (x, weight, grad)))
        planes = convolution(x, weight, grad)
        for way, points in WAYS.items():
            tiled = by_tiles(x, weight, grad, axis(height, points[0]), axis(width, points[1]))
            judged = [accuracy(*each) for each in zip(tiled, exact, (chained[0], planes[1]), strict=True)]
            products = len(axis(height, points[0])[0]) * len(axis(width, points[1])[0]) / (height * width)
            rows.append([name, way, products, *(each.error / each.budget for each in judged)])
    heads = ["maps", "tiles", "products a cell", "error / allowed, result", "error / allowed, weight's gradient"]
    print(tabulate(rows, heads, tablefmt="github", floatfmt=".2f"))


def convolution(x: Tensor, weight: Tensor, grad: Tensor) -> tuple[Tensor, Tensor]:
    """PyTorch's: the result, and the weight's gradient."""
    weight = weight.detach().requires_grad_()
    out = F.conv2d(x, weight, padding=1)
    out.backward(grad)
    assert weight.grad is not None
    return out.detach(), weight.grad


def tile(points: tuple[float, ...]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The matrices of F(m, 3) at these points: m + 2 inputs to products, 3 taps to products, products to m outputs."""

    def powers(count: int) -> np.ndarray:
        last = [0.0] * (count - 1) + [1.0]
        return np.array([last if p == INFINITY else [float(p) ** k for k in range(count)] for p in points])

    return np.linalg.inv(powers(len(points)).T), powers(3), powers(len(points) - 2).T


def axis(size: int, points: tuple[float, ...]) -> tuple[Tensor, Tensor, Tensor]:
    """Tiles along an axis: of all products [P, size] inputs and [P, 3] taps, and outputs [size, P].

    What tiles of these points leave is done by F(2, 3), then by the taps themselves.
    """
    inputs, taps, outputs, at = [], [], [], 0
    while at < size:
        fitting = next((p for p in (points, TWO) if at + len(p) - 2 <= size), None)
        ours = (np.eye(3), np.eye(3), np.ones((1, 3))) if fitting is None else tile(fitting)
        tile_outputs = ours[2].shape[0]
        padded = np.zeros((len(ours[0]), size + 2))
        padded[:, at : at + tile_outputs + 2] = ours[0]
        inputs.append(padded[:, 1:-1])
        taps.append(ours[1])
        outputs.append(np.pad(ours[2], ((at, size - at - tile_outputs), (0, 0))))
        at += tile_outputs
    kept = np.abs(np.concatenate(inputs)).sum(1) > 0  # a tap beyond the map's edge
    transforms = np.concatenate(inputs)[kept], np.concatenate(taps)[kept], np.concatenate(outputs, 1)[:, kept]
    return tuple(torch.from_numpy(each).float() for each in transforms)


def by_tiles(x: Tensor, weight: Tensor, grad: Tensor, down: tuple, across: tuple) -> tuple[Tensor, Tensor]:
    """The result, and the weight's gradient; products of the same taps are one product of matrices."""
    out, of_weight = torch.zeros_like(grad), torch.zeros_like(weight)
    for inputs_y, taps_y, outputs_y in by_taps(*down):
        for inputs_x, taps_x, outputs_x in by_taps(*across):
            rows = torch.einsum("ph,nchw,qw->npqc", inputs_y, x, inputs_x)
            combination = torch.einsum("a,dcab,b->dc", taps_y, weight, taps_x)
            out += torch.einsum("hp,npqd,wq->ndhw", outputs_y, rows @ combination.T, outputs_x)
            left = torch.einsum("hp,ndhw,wq->npqd", outputs_y, grad, outputs_x)
            of_combination = left.flatten(0, 2).T @ rows.flatten(0, 2)
            of_weight += torch.einsum("a,dc,b->dcab", taps_y, of_combination, taps_x)
    return out, of_weight


def by_taps(inputs: Tensor, taps: Tensor, outputs: Tensor) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """The products of an axis, by the combination of taps that they take."""
    kinds, which = taps.unique(dim=0, return_inverse=True)
    for index, combination in enumerate(kinds):
        yield inputs[which == index], combination, outputs[:, which == index]


if __name__ == "__main__":
    main()
