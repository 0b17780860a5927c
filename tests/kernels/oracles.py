"""Slow, obvious versions of the operators, written from their definitions. They share no code with the library."""

import itertools
import math

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import conv2d

TOLERANCE = 1e-4


def _bilinear(plane: np.ndarray, y: float, x: float) -> np.ndarray:
    """plane [C, H, W] at (y, x) within [0, H - 1] x [0, W - 1]."""
    top, left = math.floor(y), math.floor(x)
    bottom, right = math.ceil(y), math.ceil(x)
    above = plane[:, top, left] + (plane[:, top, right] - plane[:, top, left]) * (x - left)
    below = plane[:, bottom, left] + (plane[:, bottom, right] - plane[:, bottom, left]) * (x - left)
    return above + (below - above) * (y - top)


def _within(position: float, last: int) -> bool:
    return -TOLERANCE <= position <= last + TOLERANCE


def _sample_position(low: float, high: float, index: int, size: int) -> float:
    return low + index * (high - low) / (size - 1) if size > 1 else (low + high) / 2


def _images(ptr: Tensor):
    bounds = ptr.tolist()
    return enumerate(range(low, high) for low, high in itertools.pairwise(bounds))


def crop_resize(features: Tensor, boxes: Tensor, ptr: Tensor, size: int, border: str) -> Tensor:
    source = features.double().numpy()
    channels, height, width = source.shape[1:]
    out = np.zeros((len(boxes), channels, size, size))
    for image, regions in _images(ptr):
        for region in regions:
            x1, y1, x2, y2 = boxes[region].double().tolist()
            for i in range(size):
                for j in range(size):
                    y, x = _sample_position(y1, y2, i, size), _sample_position(x1, x2, j, size)
                    if not (math.isfinite(y) and math.isfinite(x)):
                        continue
                    if border == "zero" and not (_within(y, height - 1) and _within(x, width - 1)):
                        continue
                    y, x = min(max(y, 0.0), height - 1.0), min(max(x, 0.0), width - 1.0)
                    out[region, :, i, j] = _bilinear(source[image], y, x)
    return torch.from_numpy(out)


def paste_mean(memory: Tensor, patches: Tensor, boxes: Tensor, ptr: Tensor) -> tuple[Tensor, Tensor]:
    """The memory after the paste, and how many regions cover each cell."""
    out, source = memory.double().numpy().copy(), patches.double().numpy()
    height, width = out.shape[2:]
    last = source.shape[-1] - 1
    count = np.zeros((len(out), height, width), dtype=np.int64)
    for image, regions in _images(ptr):
        for v in range(height):
            for u in range(width):
                found = []
                for region in regions:
                    x1, y1, x2, y2 = boxes[region].double().tolist()
                    if not all(map(math.isfinite, (x1, y1, x2, y2))) or x1 == x2 or y1 == y2:
                        continue
                    y, x = (v - y1) / (y2 - y1) * last, (u - x1) / (x2 - x1) * last
                    if _within(y, last) and _within(x, last):
                        found.append(_bilinear(source[region], min(max(y, 0), last), min(max(x, 0), last)))
                count[image, v, u] = len(found)
                if found:
                    out[image, :, v, u] += sum(found) / len(found)
    return torch.from_numpy(out), torch.from_numpy(count)


def conv_gru(x: Tensor, h: Tensor, weights) -> Tensor:
    """The formula as it stands in the paper; autograd gives its gradients."""
    new_x, new_h, reset_x, reset_h, update_x, update_h, new_bias, reset_bias, update_bias = weights

    def gate(w_x, bias, w_h, state):
        return conv2d(x, w_x, padding=1) + bias.view(1, -1, 1, 1) + conv2d(state, w_h, padding=1)

    reset = torch.sigmoid(gate(reset_x, reset_bias, reset_h, h))
    update = torch.sigmoid(gate(update_x, update_bias, update_h, h))
    new = torch.relu(gate(new_x, new_bias, new_h, reset * h))
    return update * new - update * h


def dense(edges, num_nodes: int, normalize: bool = False) -> Tensor:
    """The adjacency matrices [T, N, N] of (src, dst, weight) triples, in float64."""
    out = torch.zeros(len(edges), num_nodes, num_nodes, dtype=torch.float64)
    for kind, (src, dst, weight) in enumerate(edges):
        for s, d, w in zip(src.tolist(), dst.tolist(), weight.tolist(), strict=True):
            out[kind, d, s] += w
        if normalize:
            for row in out[kind]:
                if float(row.sum()) > 0:
                    row /= row.sum()
    return out


def propagate(x: Tensor, adjacency: Tensor, weight: Tensor) -> Tensor:
    return sum(a @ x @ w for a, w in zip(adjacency, weight, strict=True))


def region_adjacency(boxes: Tensor, ptr: Tensor, bandwidth: float) -> Tensor:
    """[5, R, R] over all images at once: left, right, above, below, overlap."""
    out = torch.zeros(5, len(boxes), len(boxes), dtype=torch.float64)
    corners = boxes.double().tolist()
    for _, regions in _images(ptr):
        for i in regions:
            for j in regions:
                if i == j or not all(map(math.isfinite, corners[i] + corners[j])):
                    continue
                (ax1, ay1, ax2, ay2), (bx1, by1, bx2, by2) = corners[i], corners[j]
                dx = (bx1 + bx2) / 2 - (ax1 + ax2) / 2
                dy = (by1 + by2) / 2 - (ay1 + ay2) / 2
                kappa = math.exp(-math.sqrt(dx * dx + dy * dy) / bandwidth)
                for kind, holds in enumerate((dx < 0, dx > 0, dy < 0, dy > 0)):
                    out[kind, i, j] = kappa if holds else 0.0
                shared = max(0.0, min(ax2, bx2) - max(ax1, bx1)) * max(0.0, min(ay2, by2) - max(ay1, by1))
                if shared > 0:
                    out[4, i, j] = shared / ((ax2 - ax1) * (ay2 - ay1) + (bx2 - bx1) * (by2 - by1) - shared)
    for matrix in out:
        for row in matrix:
            if float(row.sum()) > 0:
                row /= row.sum()
    return out
