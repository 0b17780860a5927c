"""The definition of propagate and propagate_regions in plain PyTorch, with their gradients."""

import torch
from torch import Tensor

from ..checks import image_slices
from ..numerics import opmath_dtype

REGION_TYPES = ("left", "right", "above", "below", "overlap")


def propagate(x: Tensor, edges: list[Tensor], weight: Tensor) -> Tensor:
    """x [B, N, D_in], an EdgeSet's tensors, weight [T, D_in, D_out] -> sum over t of A_t x W_t, [B, N, D_out]."""
    return _typed_sum(x, edges[:3], weight)


def propagate_backward(grad: Tensor, x: Tensor, edges: list[Tensor], weight: Tensor) -> tuple[Tensor, Tensor]:
    """Gradients to x and weight: dx = sum over t of A_t' grad W_t', dW_t = (A_t x)' grad."""
    d_x = _typed_sum(grad, edges[3:], weight.mT)
    g = grad.to(opmath_dtype(x.dtype))
    d_weight = [torch.einsum("bni,bno->io", _aggregate(x, edges[:3], t), g) for t in range(len(weight))]
    return d_x, torch.stack(d_weight).to(weight.dtype)


def propagate_regions(x: Tensor, boxes: Tensor, ptr: Tensor, weight: Tensor, bandwidth: Tensor) -> Tensor:
    """x [R, D_in], weight [5, D_in, D_out], bandwidth [] -> [R, D_out], image by image."""
    dtype = opmath_dtype(x.dtype)
    out = torch.empty((len(x), weight.shape[2]), dtype=x.dtype, device=x.device)
    for regions in image_slices("propagate_regions", ptr, len(boxes)):
        adjacency = region_adjacency(boxes[regions], bandwidth, dtype)
        out[regions] = torch.einsum("tij,jd,tde->ie", adjacency, x[regions].to(dtype), weight.to(dtype)).to(x.dtype)
    return out


def propagate_regions_backward(
    grad: Tensor, x: Tensor, boxes: Tensor, ptr: Tensor, weight: Tensor, bandwidth: Tensor, bandwidth_grad: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients to x, weight and bandwidth; the last one is 0 unless `bandwidth_grad`."""
    dtype = opmath_dtype(x.dtype)
    d_x = torch.empty_like(x, memory_format=torch.contiguous_format)
    d_weight = torch.zeros(weight.shape, dtype=dtype, device=weight.device)
    d_bandwidth = torch.zeros_like(bandwidth)
    for regions in image_slices("propagate_regions_backward", ptr, len(boxes)):
        adjacency = region_adjacency(boxes[regions], bandwidth, dtype)
        g, own = grad[regions].to(dtype), x[regions].to(dtype)
        d_x[regions] = torch.einsum("tij,ie,tde->jd", adjacency, g, weight.to(dtype)).to(x.dtype)
        d_weight += torch.einsum("tij,jd,ie->tde", adjacency, own, g)
        if bandwidth_grad:
            slope = region_slope(boxes[regions], bandwidth, dtype)
            d_bandwidth += torch.einsum("tij,jd,tde,ie->", slope, own, weight.to(dtype), g)
    return d_x, d_weight.to(weight.dtype), d_bandwidth


def region_adjacency(boxes: Tensor, bandwidth: Tensor | float, dtype: torch.dtype = torch.float32) -> Tensor:
    """The five row-normalised adjacency matrices [5, R, R] of one image's boxes [R, 4] in pixels.

    kappa = exp(-|c_i - c_j| / bandwidth) of the centres; left[i, j] = kappa where c_j lies left of c_i, right, above
    and below likewise; overlap[i, j] = IoU(i, j), j != i; then every row divided by its sum, rows of zeros kept. A box
    with a NaN or an infinity has no edges. The largest kappa of a row is divided out first, which the sum undoes
    exactly in mathematics and which keeps far neighbours from vanishing in float32. Coordinates are held within 1e37
    and the IoU is made of ratios of lengths, so that nothing overflows.
    """
    sides, beyond, iou = _pairs(boxes, dtype)
    kappa = torch.where(sides, torch.exp(-beyond / bandwidth), 0)
    adjacency = torch.cat([kappa, iou[None]])
    total = adjacency.sum(2, keepdim=True)
    return adjacency / torch.where(total > 0, total, 1)


def region_slope(boxes: Tensor, bandwidth: Tensor | float, dtype: torch.dtype = torch.float32) -> Tensor:
    """The derivative of `region_adjacency` to the bandwidth s: A[i, j] (d[i, j] - sum over k of A[i, k] d[i, k]) / s^2.

    d is the distance of the centres; a number added to a row of d changes nothing, so d counts from the nearest one.
    """
    sides, beyond, _ = _pairs(boxes, dtype)
    adjacency = region_adjacency(boxes, bandwidth, dtype)
    d = torch.where(sides, beyond, 0)
    mean = (adjacency[:4] * d).sum(2, keepdim=True)
    slope = torch.where(sides, adjacency[:4] * (d - mean), 0) / bandwidth**2
    return torch.cat([slope, torch.zeros_like(adjacency[4:])])


def _pairs(boxes: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    """Of all pairs of one image's boxes: which lie left, right, above, below [4, R, R]; how much farther than the
    row's nearest one of that side, infinite for others [4, R, R]; the IoU [R, R], 0 with itself."""
    usable = boxes.isfinite().all(1)
    boxes = torch.where(usable[:, None], boxes, 0).clamp(-1e37, 1e37).to(dtype)
    x1, y1, x2, y2 = boxes.unbind(1)
    x, y = (x1 + x2) / 2, (y1 + y2) / 2
    pair = usable[:, None] & usable & ~torch.eye(len(boxes), dtype=torch.bool, device=boxes.device)
    sides = torch.stack([x < x[:, None], x > x[:, None], y < y[:, None], y > y[:, None]]) & pair
    distance = torch.where(sides, torch.hypot(x[:, None] - x, y[:, None] - y), torch.inf)
    nearest = distance.amin(2, keepdim=True) if len(boxes) else distance.sum(2, keepdim=True)
    beyond = torch.where(sides, distance - nearest, torch.inf)

    overlap_x = (torch.minimum(x2[:, None], x2) - torch.maximum(x1[:, None], x1)).clamp(min=0)
    overlap_y = (torch.minimum(y2[:, None], y2) - torch.maximum(y1[:, None], y1)).clamp(min=0)
    area = ((x2 - x1)[:, None] / overlap_x) * ((y2 - y1)[:, None] / overlap_y)  # of box i, in intersections
    iou = torch.where(pair & (overlap_x > 0) & (overlap_y > 0), 1 / (area + area.mT - 1), 0)
    return sides, beyond, iou


def _typed_sum(x: Tensor, csr: list[Tensor], weight: Tensor) -> Tensor:
    """The sum over types of A_t x W_t for T N rows in CSR: [B, N, D_out]."""
    dtype = opmath_dtype(x.dtype)
    out = torch.zeros((*x.shape[:2], weight.shape[2]), dtype=dtype, device=x.device)
    for edge_type in range(len(weight)):
        out += _aggregate(x, csr, edge_type) @ weight[edge_type].to(dtype)
    return out.to(x.dtype)


def _aggregate(x: Tensor, csr: list[Tensor], edge_type: int) -> Tensor:
    """A_t x, summed in CSR order: [B, N, D] in the accumulator's dtype."""
    dtype, nodes = opmath_dtype(x.dtype), x.shape[1]
    indptr, indices, values = csr
    rows = indptr[edge_type * nodes : (edge_type + 1) * nodes + 1]
    first, last = int(rows[0]), int(rows[-1])
    own, weights = indices[first:last].long(), values[first:last].to(dtype)[:, None]
    out = [torch.segment_reduce(image[own].to(dtype) * weights, "sum", offsets=rows - first, initial=0) for image in x]
    return torch.stack(out) if out else x.new_zeros((0, nodes, x.shape[2]), dtype=dtype)
