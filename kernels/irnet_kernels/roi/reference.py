"""The definition of crop_resize and paste_mean in plain PyTorch; float64 stays float64, all else computes in float32.

Both operators and both gradients are one separable product, Ay X Ax, of hat functions hat(c, n)[k] = max(0, 1 - |c -
k|): cropping collects from the map with the hats of its sample positions, pasting spreads onto it with those of its
cells.
"""

from collections.abc import Iterator

import torch
from torch import Tensor

from ..checks import image_slices
from ..numerics import empty_map, opmath_dtype

TOLERANCE = 1e-4  # cells by which a position may lie outside its range and still count as on the border
CHUNK = 64  # regions worked on at once, which bounds the memory of the products


def crop_resize(features: Tensor, boxes: Tensor, ptr: Tensor, size: int, border: str) -> Tensor:
    channels, height, width = features.shape[1:]
    out = empty_map(features, (len(boxes), channels, size, size))
    for image, regions in _chunks("crop_resize", ptr, len(boxes)):
        wy, wx = _crop_weights(boxes[regions], size, height, width, border, opmath_dtype(features.dtype))
        out[regions] = _collect(features[image], wy, wx).to(out.dtype)
    return out


def crop_resize_backward(grad: Tensor, boxes: Tensor, ptr: Tensor, height: int, width: int, border: str) -> Tensor:
    dtype = opmath_dtype(grad.dtype)
    out = empty_map(grad, (len(ptr) - 1, grad.shape[1], height, width), dtype).zero_()
    for image, regions in _chunks("crop_resize_backward", ptr, len(boxes)):
        wy, wx = _crop_weights(boxes[regions], grad.shape[-1], height, width, border, dtype)
        out[image] += _spread(grad[regions], wy, wx)
    return out.to(grad.dtype)


def paste_mean(memory: Tensor, patches: Tensor, boxes: Tensor, ptr: Tensor) -> Tensor:
    dtype = opmath_dtype(memory.dtype)
    height, width = memory.shape[-2:]
    size = patches.shape[-1]
    total = empty_map(memory, memory.shape, dtype).zero_()
    for image, regions in _chunks("paste_mean", ptr, len(boxes)):
        (wy, wx), _ = _paste_weights(boxes[regions], size, height, width, dtype)
        total[image] += _spread(patches[regions], wy, wx)
    count = coverage(boxes, ptr, size, height, width, dtype)[:, None]
    mean = total / count.clamp(min=1).to(dtype)
    # Not memory + 0: a cell that nothing covers keeps its bits, -0.0 and all.
    return empty_map(memory, memory.shape).copy_(torch.where(count > 0, memory.to(dtype) + mean, memory.to(dtype)))


def paste_mean_backward(grad: Tensor, boxes: Tensor, ptr: Tensor, size: int) -> Tensor:
    """The gradient to the patches; the one to the memory is `grad` itself."""
    dtype = opmath_dtype(grad.dtype)
    height, width = grad.shape[-2:]
    count = coverage(boxes, ptr, size, height, width, dtype).clamp(min=1).to(dtype)
    share = grad.to(dtype) / count[:, None]
    out = empty_map(grad, (len(boxes), grad.shape[1], size, size))
    for image, regions in _chunks("paste_mean_backward", ptr, len(boxes)):
        (wy, wx), _ = _paste_weights(boxes[regions], size, height, width, dtype)
        out[regions] = _collect(share[image], wy, wx).to(out.dtype)
    return out


def coverage(
    boxes: Tensor, ptr: Tensor, size: int, height: int, width: int, dtype: torch.dtype = torch.float32
) -> Tensor:
    """How many regions cover each cell when patches of `size` are pasted: int64 [B, height, width].

    dtype is the one in which positions are computed.
    """
    out = torch.zeros((len(ptr) - 1, height, width), dtype=torch.int64, device=boxes.device)
    for image, regions in _chunks("coverage", ptr, len(boxes)):
        _, (covered_y, covered_x) = _paste_weights(boxes[regions], size, height, width, dtype)
        out[image] += (covered_y[:, :, None] & covered_x[:, None, :]).sum(0)
    return out


def _collect(image: Tensor, wy: Tensor, wx: Tensor) -> Tensor:
    """[C, H, W] with weights [r, P, H] and [r, P, W] -> [r, C, P, P]."""
    rows = torch.einsum("rph,chw->rpcw", wy, image.to(wy.dtype))
    return torch.einsum("rpcw,rqw->rcpq", rows, wx)


def _spread(patches: Tensor, wy: Tensor, wx: Tensor) -> Tensor:
    """[r, C, P, P] with weights [r, P, H] and [r, P, W] -> [C, H, W], the adjoint of `_collect`."""
    rows = torch.einsum("rcpq,rqw->rpcw", patches.to(wy.dtype), wx)
    return torch.einsum("rph,rpcw->chw", wy, rows)


def _crop_weights(boxes: Tensor, size: int, height: int, width: int, border: str, dtype: torch.dtype) -> list[Tensor]:
    """Hats [r, size, height] and [r, size, width] of the sample positions of `boxes` (size 1 samples the centre)."""
    x1, y1, x2, y2 = boxes.to(dtype).unbind(1)
    step = torch.arange(size, dtype=dtype, device=boxes.device) if size > 1 else boxes.new_tensor([0.5], dtype=dtype)
    scale = torch.full((), max(size - 1, 1), dtype=dtype, device=boxes.device)  # on a GPU / NUMBER is no true division
    weights = []
    for low, high, cells in ((y1, y2, height), (x1, x2, width)):
        position = low[:, None] + step * ((high - low) / scale)[:, None]
        if border == "clamp":
            position = torch.where(position.isfinite(), position.clamp(0, cells - 1), position)
        weights.append(_hat(position, cells)[0])
    return weights


def _paste_weights(
    boxes: Tensor, size: int, height: int, width: int, dtype: torch.dtype
) -> tuple[list[Tensor], list[Tensor]]:
    """Hats [r, size, height] and [r, size, width] of the cells' patch positions, and which rows and columns are
    covered.

    A box without extent along an axis, or with an infinite one, covers nothing.
    """
    x1, y1, x2, y2 = boxes.to(dtype).unbind(1)
    weights, covered = [], []
    for low, high, cells in ((y1, y2, height), (x1, x2, width)):
        extent = (high - low)[:, None]
        cell = torch.arange(cells, dtype=dtype, device=boxes.device)
        position = (cell - low[:, None]) / extent * (size - 1)
        position = torch.where(extent.isfinite() & (extent != 0), position, torch.nan)
        weight, inside = _hat(position, size)
        weights.append(weight.transpose(1, 2))
        covered.append(inside)
    return weights, covered


def _hat(position: Tensor, cells: int) -> tuple[Tensor, Tensor]:
    """Bilinear weights [..., cells] of positions [...] on 0 .. cells - 1, zero outside; and which are inside."""
    inside = (position >= -TOLERANCE) & (position <= cells - 1 + TOLERANCE)  # false for NaN and infinities
    position = torch.where(inside, position, 0).clamp(0, cells - 1)
    index = torch.arange(cells, dtype=position.dtype, device=position.device)
    weight = (1 - (position[..., None] - index).abs()).clamp(min=0)
    return weight * inside[..., None], inside


def _chunks(name: str, ptr: Tensor, regions: int) -> Iterator[tuple[int, slice]]:
    """(image, slice of its regions) in order, at most CHUNK regions at a time."""
    for image, owned in enumerate(image_slices(name, ptr, regions)):
        for start in range(owned.start, owned.stop, CHUNK):
            yield image, slice(start, min(start + CHUNK, owned.stop))
