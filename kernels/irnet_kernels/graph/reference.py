"""The definition of propagate and propagate_regions in plain PyTorch, with their gradients."""

import torch
from torch import Tensor

from ..library import accumulator, image_slices

REGION_TYPES = ("left", "right", "above", "below", "overlap")


def propagate(
    x: Tensor,
    indptr: Tensor,
    indices: Tensor,
    values: Tensor,
    t_indptr: Tensor,
    t_indices: Tensor,
    t_values: Tensor,
    weight: Tensor,
) -> Tensor:
    """x [B, N, D_in], weight [T, D_in, D_out] -> sum over t of A_t x W_t, [B, N, D_out]."""
    dtype = accumulator(x.dtype)
    out = torch.zeros((*x.shape[:2], weight.shape[2]), dtype=dtype, device=x.device)
    for kind in range(len(weight)):
        out += _aggregate(x, indptr, indices, values, kind) @ weight[kind].to(dtype)
    return out.to(x.dtype)


def propagate_backward(
    grad: Tensor,
    x: Tensor,
    indptr: Tensor,
    indices: Tensor,
    values: Tensor,
    t_indptr: Tensor,
    t_indices: Tensor,
    t_values: Tensor,
    weight: Tensor,
) -> tuple[Tensor, Tensor]:
    """Gradients to x and weight: dx = sum over t of A_t' (grad W_t'), dW_t = (A_t x)' grad."""
    dtype = accumulator(x.dtype)
    grad = grad.to(dtype)
    d_weight = torch.stack(
        [torch.einsum("bni,bno->io", _aggregate(x, indptr, indices, values, kind), grad) for kind in range(len(weight))]
    )
    back = torch.einsum("bno,tio->btni", grad, weight.to(dtype)).flatten(1, 2)  # [B, T N, D_in]
    d_x = _segment_sum(back, t_indptr, t_indices, t_values)
    return d_x.to(x.dtype), d_weight.to(weight.dtype)


def propagate_regions(x: Tensor, boxes: Tensor, ptr: Tensor, weight: Tensor, bandwidth: float) -> Tensor:
    """x [R, D_in], weight [5, D_in, D_out] -> [R, D_out], image by image."""
    dtype = accumulator(x.dtype)
    out = torch.empty((len(x), weight.shape[2]), dtype=x.dtype, device=x.device)
    for regions in image_slices("propagate_regions", ptr, len(boxes)):
        adjacency = region_adjacency(boxes[regions], bandwidth, dtype)
        out[regions] = torch.einsum("tij,jd,tde->ie", adjacency, x[regions].to(dtype), weight.to(dtype)).to(x.dtype)
    return out


def propagate_regions_backward(
    grad: Tensor, x: Tensor, boxes: Tensor, ptr: Tensor, weight: Tensor, bandwidth: float
) -> tuple[Tensor, Tensor]:
    """Gradients to x and weight."""
    dtype = accumulator(x.dtype)
    d_x = torch.empty_like(x, memory_format=torch.contiguous_format)
    d_weight = torch.zeros(weight.shape, dtype=dtype, device=weight.device)
    for regions in image_slices("propagate_regions_backward", ptr, len(boxes)):
        adjacency = region_adjacency(boxes[regions], bandwidth, dtype)
        g = grad[regions].to(dtype)
        d_x[regions] = torch.einsum("tij,ie,tde->jd", adjacency, g, weight.to(dtype)).to(x.dtype)
        d_weight += torch.einsum("tij,jd,ie->tde", adjacency, x[regions].to(dtype), g)
    return d_x, d_weight.to(weight.dtype)


def region_adjacency(boxes: Tensor, bandwidth: float, dtype: torch.dtype = torch.float32) -> Tensor:
    """The five row-normalised adjacency matrices [5, R, R] of one image's boxes [R, 4] in pixels.

    kappa = exp(-|c_i - c_j| / bandwidth) of the centres; left[i, j] = kappa where c_j lies left of c_i, right, above
    and below likewise; overlap[i, j] = IoU(i, j), j != i; then every row divided by its sum, rows of zeros kept. A box
    with a NaN or an infinity has no edges. The largest kappa of a row is divided out first, which the sum undoes
    exactly in mathematics and which keeps far neighbours from vanishing in float32. Coordinates are held within 1e37
    and the IoU is made of ratios of lengths, so that nothing overflows.
    """
    usable = boxes.isfinite().all(1)
    boxes = torch.where(usable[:, None], boxes, 0).clamp(-1e37, 1e37).to(dtype)
    x1, y1, x2, y2 = boxes.unbind(1)
    x, y = (x1 + x2) / 2, (y1 + y2) / 2
    pair = usable[:, None] & usable & ~torch.eye(len(boxes), dtype=torch.bool, device=boxes.device)
    sides = torch.stack([x < x[:, None], x > x[:, None], y < y[:, None], y > y[:, None]]) & pair
    distance = torch.where(sides, torch.hypot(x[:, None] - x, y[:, None] - y), torch.inf)
    nearest = distance.amin(2, keepdim=True) if len(boxes) else distance.sum(2, keepdim=True)
    kappa = torch.where(sides, torch.exp((nearest - distance) / bandwidth), 0)

    overlap_x = (torch.minimum(x2[:, None], x2) - torch.maximum(x1[:, None], x1)).clamp(min=0)
    overlap_y = (torch.minimum(y2[:, None], y2) - torch.maximum(y1[:, None], y1)).clamp(min=0)
    area = ((x2 - x1)[:, None] / overlap_x) * ((y2 - y1)[:, None] / overlap_y)  # of box i, in intersections
    iou = torch.where(pair & (overlap_x > 0) & (overlap_y > 0), 1 / (area + area.mT - 1), 0)

    adjacency = torch.cat([kappa, iou[None]])
    total = adjacency.sum(2, keepdim=True)
    return adjacency / torch.where(total > 0, total, 1)


def _aggregate(x: Tensor, indptr: Tensor, indices: Tensor, values: Tensor, kind: int) -> Tensor:
    """A_kind x: [B, N, D_in] in the accumulator's dtype."""
    nodes = x.shape[1]
    rows = indptr[kind * nodes : (kind + 1) * nodes + 1]
    first, last = int(rows[0]), int(rows[-1])
    return _segment_sum(x, rows - first, indices[first:last], values[first:last])


def _segment_sum(x: Tensor, indptr: Tensor, indices: Tensor, values: Tensor) -> Tensor:
    """Rows of a CSR matrix times x [B, N, D]: [B, rows, D] in the accumulator's dtype, summed in CSR order."""
    dtype = accumulator(x.dtype)
    out = [
        torch.segment_reduce(
            image[indices.long()].to(dtype) * values.to(dtype)[:, None], "sum", offsets=indptr, initial=0
        )
        for image in x
    ]
    return torch.stack(out) if out else x.new_zeros((0, len(indptr) - 1, x.shape[2]), dtype=dtype)
