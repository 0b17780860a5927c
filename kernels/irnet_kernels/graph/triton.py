"""propagate, propagate_regions and their gradients in Triton, for GPUs where nobody compiled anything. Nothing of
PyTorch's dispatcher lives here: library.py registers the launchers.

Kernels make the sums over edges of all types, [rows, types * channels] in memory; the products with the weights of all
types are one product of PyTorch's. dx is the same over transposed edges and with transposed weights, and the sums that
it is made of give the weights' gradient, too: (A_t x)' g = x' (A_t' g). So nothing is kept but the inputs, one buffer
of sums exists at a time, and backward makes them once.

Regions have edges to all regions of their image. A program has BLOCK_M regions of one image and goes over the image by
BLOCK_K: it makes a tile of the adjacency from boxes and multiplies it with rows of x, so that nothing of size R x R is
stored. What a row of the adjacency is divided by, one kernel sums before; the transpose needs that of other regions.

There are no atomics, nothing is read on the host. Sums go in an order that follows from the shapes and `ptr` alone.
Whatever boxes and `ptr` hold, nothing outside the tensors is touched; edges are trusted.
"""

from collections.abc import Iterator, Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from irnet_kernels.library import accumulator  # absolute: this file also runs as a copy outside of its package

GROUP = 16384  # rows of the buffer of sums that images of a batch share; one image has as many as it needs
# What is launched, by the bytes of the dtype; nothing is tuned at run time.
EDGES = tl.constexpr(8)  # rows that are on their way from memory at the same time
CHANNELS = {2: (512, 2), 4: (512, 4), 8: (256, 4)}  # of a program of propagate, and its warps: 16 bytes a lane
SUMS = {"BLOCK_M": 16, "BLOCK_K": 16, "num_warps": 4, "num_stages": 1}
BOUND = {"maxnreg": 168}  # of the kernel of SUMS: without it ptxas spills to have more programs at once
TILES = {
    2: {"BLOCK_M": 64, "BLOCK_N": 128, "BLOCK_K": 16, "num_warps": 8, "num_stages": 2},
    4: {"BLOCK_M": 32, "BLOCK_N": 128, "BLOCK_K": 16, "num_warps": 8, "num_stages": 2},
    8: {"BLOCK_M": 16, "BLOCK_N": 16, "BLOCK_K": 4, "num_warps": 8, "num_stages": 1},
}

# What is kept of a region, by columns of REAL [.., regions]: of its rows of the adjacency, the distance of the nearest
# one on each side, what the five types are divided by, and the mean of a side's distances, from the nearest on.
SIDES = tl.constexpr(4)  # left, right, above, below; then comes the overlap
TOTALS, MEANS, COLUMNS = tl.constexpr(4), tl.constexpr(9), tl.constexpr(13)

TRITON_NAMES = {torch.float64: "*fp64", torch.float32: "*fp32", torch.bfloat16: "*bf16"}
INTERPRETED = tl.constexpr(bool(triton.knobs.runtime.interpret))


# Parts that kernels share


@triton.jit
def _rounded(value, dtype: tl.constexpr):
    """In the output's dtype, rounded to nearest even; Triton's interpreter would cut a bfloat16's bits off."""
    if INTERPRETED and dtype == tl.bfloat16:
        bits = value.to(tl.uint32, bitcast=True)
        bits = tl.where(value == value, bits + 0x7FFF + ((bits >> 16) & 1), 0x7FC00000)
        rounded = (bits >> 16).to(tl.uint16).to(tl.bfloat16, bitcast=True)
    else:
        rounded = value.to(dtype)
    return rounded


# Edges that are given


@triton.jit(do_not_specialize=("nodes", "types"))
def propagate_kernel(
    x, indptr, indices, values, out, nodes, types, channels,
    REAL: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """A program makes the sum over the edges of one type into one node of one image, in the order of the edges."""
    program = tl.program_id(0)
    node, kind = program // types % nodes, program % types
    channel = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = channel < channels
    source = x + (program // types // nodes).to(tl.int64) * nodes * channels + channel
    row = indptr + kind * nodes + node
    first, last = tl.load(row), tl.load(row + 1)
    total = tl.zeros((BLOCK,), REAL)
    for edge in range(first, last, EDGES):
        for step in tl.static_range(EDGES):
            there = edge + step < last
            neighbour = tl.load(indices + edge + step, mask=there, other=0).to(tl.int64)
            weight = tl.load(values + edge + step, mask=there, other=0.0).to(REAL)
            total += weight * tl.load(source + neighbour * channels, mask=inside & there, other=0.0).to(REAL)
    target = out + program.to(tl.int64) * channels + channel
    tl.store(target, _rounded(total, out.dtype.element_ty), mask=inside)


# Edges between the regions of an image


@triton.jit
def _tile(ptr, images, regions, BLOCK: tl.constexpr):
    """A program's first region, and the regions [begin, end) of its image; left-over programs begin at the end.

    Image b has the programs from ptr[b] // BLOCK + b on: one for every BLOCK regions and at most one too many.
    """
    program = tl.program_id(0)
    low, high = images * 0, images
    while high - low > 1:
        middle = (low + high) // 2
        before = tl.load(ptr + middle) // BLOCK + middle <= program
        low = tl.where(before, middle, low)
        high = tl.where(before, high, middle)
    begin = tl.maximum(tl.load(ptr + low), 0)
    end = tl.minimum(tl.load(ptr + low + 1, mask=low < images, other=0), regions)
    return tl.maximum(begin + (program - low - begin // BLOCK) * BLOCK, begin), begin, end


@triton.jit
def _held(corner, usable):
    return tl.where(usable, tl.minimum(tl.maximum(corner, -1e37), 1e37), 0.0)


@triton.jit
def _boxes(boxes, region, end, REAL: tl.constexpr):
    """Of regions the edges x1, y1, x2, y2 as reference.py holds them; and which ones have edges of the graph."""
    corner, there = boxes + region * 4, region < end
    x1 = tl.load(corner, mask=there, other=float("nan"))
    y1 = tl.load(corner + 1, mask=there, other=float("nan"))
    x2 = tl.load(corner + 2, mask=there, other=float("nan"))
    y2 = tl.load(corner + 3, mask=there, other=float("nan"))
    usable = (x1 - x1 == 0) & (y1 - y1 == 0) & (x2 - x2 == 0) & (y2 - y2 == 0)
    x1, y1, x2, y2 = _held(x1, usable), _held(y1, usable), _held(x2, usable), _held(y2, usable)
    return x1.to(REAL), y1.to(REAL), x2.to(REAL), y2.to(REAL), usable


@triton.jit
def _along(x, y, kind):
    """The coordinate that is smaller for those who lie on the side `kind`."""
    return tl.where(kind < 2, x, y) * tl.where(kind % 2 == 0, 1.0, -1.0)


@triton.jit
def _distance(x, y):
    """sqrt(x^2 + y^2), the same bits in every kernel and for (y, x): what is far differs from the nearest by few."""
    x, y = tl.abs(x), tl.abs(y)
    long, short = tl.maximum(x, y), tl.minimum(x, y)
    far = long > 1e18  # and its square may overflow
    long, short = tl.where(far, long * 2.0**-64, long), tl.where(far, short * 2.0**-64, short)
    square = tl.fma(long, long, short * short)
    root = tl.sqrt(square) if square.dtype == tl.float64 else tl.sqrt_rn(square)
    return tl.where(far, root * 2.0**64, root)


@triton.jit
def _divide(a, b):
    """As IEEE rounds it, which `/` does for float64 only."""
    return a / b if a.dtype == tl.float64 else tl.div_rn(a, b)


@triton.jit
def _overlap(x1, y1, x2, y2, u1, v1, u2, v2, pair):
    """The IoU of pairs of boxes, of ratios that do not overflow; 0 for others."""
    across, down = tl.minimum(x2, u2) - tl.maximum(x1, u1), tl.minimum(y2, v2) - tl.maximum(y1, v1)
    pair = pair & (across > 0) & (down > 0)
    across, down = tl.where(pair, across, 1.0), tl.where(pair, down, 1.0)
    one = _divide(x2 - x1 + tl.zeros_like(across), across) * _divide(y2 - y1 + tl.zeros_like(down), down)
    other = _divide(u2 - u1 + tl.zeros_like(across), across) * _divide(v2 - v1 + tl.zeros_like(down), down)
    union = one + other - 1  # in intersections
    return tl.where(pair, _divide(tl.full(union.shape, 1, union.dtype), union), 0.0)


@triton.jit
def _tf32(value):
    """Rounded to what matrix units take of a float32, which they would cut."""
    return ((value.to(tl.int32, bitcast=True) + 0x1000) & -0x2000).to(tl.float32, bitcast=True)


@triton.jit
def _dot(a, b, total, PRECISION: tl.constexpr):
    """total + a @ b. Not every GPU multiplies matrices of float64."""
    if total.dtype == tl.float64:
        total += tl.sum(a[:, :, None] * b[None, :, :], 1)
    else:
        total = tl.dot(a, b, total, input_precision=PRECISION)
    return total


@triton.jit
def _centres(x1, y1, x2, y2):
    return (x1 + x2) * 0.5, (y1 + y2) * 0.5


@triton.jit
def _nearer(nearest, distance, side):
    return tl.minimum(nearest, tl.where(side, distance, float("inf")))


@triton.jit
def _store_side(sums, kind, own, end, regions, nearest, total, mean, MEAN: tl.constexpr):
    """What is kept of a side: `total` and `mean` are still to be summed along the rows."""
    total = tl.sum(total, 1)
    total = tl.where(total > 0, total, 1.0)
    tl.store(sums + kind * regions + own, nearest, mask=own < end)
    tl.store(sums + (TOTALS + kind) * regions + own, total, mask=own < end)
    if MEAN:
        tl.store(sums + (MEANS + kind) * regions + own, _divide(tl.sum(mean, 1), total), mask=own < end)


@triton.jit(do_not_specialize=("images", "regions"))
def propagate_regions_sums_kernel(
    boxes, ptr, bandwidth, sums, images, regions,
    REAL: tl.constexpr, MEAN: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """A program's regions, all types: `sums` [COLUMNS, regions], the means only if MEAN."""
    first, begin, end = _tile(ptr, images, regions, BLOCK_M)
    last = tl.where(first < end, end, begin)
    own = first + tl.arange(0, BLOCK_M)
    x1, y1, x2, y2, usable = _boxes(boxes, own[:, None], end, REAL)
    x, y = _centres(x1, y1, x2, y2)
    left = tl.full((BLOCK_M, BLOCK_K), float("inf"), REAL)
    right, above, below = left, left, left
    for start in range(begin, last, BLOCK_K):
        u1, v1, u2, v2, there = _boxes(boxes, (start + tl.arange(0, BLOCK_K))[None, :], end, REAL)
        u, v = _centres(u1, v1, u2, v2)
        pair, distance = usable & there, _distance(x - u, y - v)
        left, right = _nearer(left, distance, pair & (u < x)), _nearer(right, distance, pair & (u > x))
        above, below = _nearer(above, distance, pair & (v < y)), _nearer(below, distance, pair & (v > y))
    left, right, above, below = tl.min(left, 1), tl.min(right, 1), tl.min(above, 1), tl.min(below, 1)

    zero = tl.zeros((BLOCK_M, BLOCK_K), REAL)
    to_left, to_right, to_above, to_below, overlap = zero, zero, zero, zero, zero
    left_mean, right_mean, above_mean, below_mean = zero, zero, zero, zero
    scale = tl.load(bandwidth)
    for start in range(begin, last, BLOCK_K):
        other = (start + tl.arange(0, BLOCK_K))[None, :]
        u1, v1, u2, v2, there = _boxes(boxes, other, end, REAL)
        u, v = _centres(u1, v1, u2, v2)
        pair, distance = usable & there, _distance(x - u, y - v)
        # Who is left of a region is not right of it.
        beyond = tl.where(pair & (u != x), distance - tl.where(u < x, left[:, None], right[:, None]), 0.0)
        kappa = tl.where(pair & (u != x), tl.exp(-beyond / scale), 0.0)
        to_left, to_right = to_left + tl.where(u < x, kappa, 0.0), to_right + tl.where(u > x, kappa, 0.0)
        if MEAN:
            left_mean += tl.where(u < x, kappa * beyond, 0.0)
            right_mean += tl.where(u > x, kappa * beyond, 0.0)
        beyond = tl.where(pair & (v != y), distance - tl.where(v < y, above[:, None], below[:, None]), 0.0)
        kappa = tl.where(pair & (v != y), tl.exp(-beyond / scale), 0.0)
        to_above, to_below = to_above + tl.where(v < y, kappa, 0.0), to_below + tl.where(v > y, kappa, 0.0)
        if MEAN:
            above_mean += tl.where(v < y, kappa * beyond, 0.0)
            below_mean += tl.where(v > y, kappa * beyond, 0.0)
        overlap += _overlap(x1, y1, x2, y2, u1, v1, u2, v2, pair & (other != own[:, None]))
    regions = regions.to(tl.int64)
    _store_side(sums, 0, own, end, regions, left, to_left, left_mean, MEAN)
    _store_side(sums, 1, own, end, regions, right, to_right, right_mean, MEAN)
    _store_side(sums, 2, own, end, regions, above, to_above, above_mean, MEAN)
    _store_side(sums, 3, own, end, regions, below, to_below, below_mean, MEAN)
    total = tl.sum(overlap, 1)
    tl.store(sums + (TOTALS + SIDES) * regions + own, tl.where(total > 0, total, 1.0), mask=own < end)


@triton.jit(do_not_specialize=("images", "regions"))
def propagate_regions_kernel(
    x, boxes, ptr, bandwidth, sums, out, images, regions, channels,
    REAL: tl.constexpr, PRECISION: tl.constexpr, WAY: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """The product of one type's adjacency ("rows"), of its transpose ("columns"), or of its derivative to the bandwidth
    times the bandwidth's square ("slope") with x: `out` [regions, types, channels]."""
    first, begin, end = _tile(ptr, images, regions, BLOCK_M)
    kind, kinds = tl.program_id(1), tl.num_programs(1)
    own = first + tl.arange(0, BLOCK_M)
    channel = tl.program_id(2) * BLOCK_N + tl.arange(0, BLOCK_N)
    x1, y1, x2, y2, usable = _boxes(boxes, own[:, None], end, REAL)
    x_own, y_own = _centres(x1, y1, x2, y2)
    nearests, totals = sums + kind % SIDES * regions.to(tl.int64), sums + (TOTALS + kind) * regions.to(tl.int64)
    means = sums + (MEANS + kind) * regions.to(tl.int64)
    if WAY != "columns":
        nearest = tl.load(nearests + own, mask=own < end, other=0.0)[:, None]
        divisor = tl.load(totals + own, mask=own < end, other=1.0)[:, None]
        mean = tl.load(means + own, mask=own < end, other=0.0)[:, None] if WAY == "slope" else 0.0
    total = tl.zeros((BLOCK_M, BLOCK_N), REAL)
    for start in range(begin, tl.where(first < end, end, begin), BLOCK_K):
        other = start + tl.arange(0, BLOCK_K)
        u1, v1, u2, v2, there = _boxes(boxes, other[None, :], end, REAL)
        pair = usable & there & (own[:, None] != other[None, :])
        if WAY == "columns":
            nearest = tl.load(nearests + other, mask=other < end, other=0.0)[None, :]
            divisor = tl.load(totals + other, mask=other < end, other=1.0)[None, :]
        if kind == SIDES:
            weight = _overlap(x1, y1, x2, y2, u1, v1, u2, v2, pair)
        else:
            u, v = _centres(u1, v1, u2, v2)
            if WAY == "columns":
                side = pair & (_along(x_own, y_own, kind) < _along(u, v, kind))
            else:
                side = pair & (_along(u, v, kind) < _along(x_own, y_own, kind))
            beyond = tl.where(side, _distance(x_own - u, y_own - v) - nearest, 0.0)
            weight = tl.where(side, tl.exp(-beyond / tl.load(bandwidth)), 0.0)
            if WAY == "slope":
                weight *= beyond - mean
        if WAY == "columns":
            weight = weight / divisor
        if PRECISION == "tf32":
            weight = _tf32(weight)
        wanted = (other < end)[:, None] & (channel < channels)[None, :]
        rows = tl.load(x + other.to(tl.int64)[:, None] * channels + channel[None, :], mask=wanted, other=0.0)
        total = _dot(weight, rows.to(REAL), total, PRECISION)
    if WAY != "columns":
        total = total / divisor
    target = out + (own.to(tl.int64)[:, None] * kinds + kind) * channels + channel[None, :]
    tl.store(target, _rounded(total, out.dtype.element_ty), mask=(own < end)[:, None] & (channel < channels)[None, :])


# Launchers, with the operators' own signatures


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
    images, nodes, _ = x.shape
    x, edges, stacked = x.contiguous(), (indptr, indices, values), weight.flatten(0, 1)
    out = x.new_empty((images, nodes, weight.shape[2]))
    for some in _groups(images, nodes):
        out[some].flatten(0, 1).copy_(_product(_sums(x[some], edges, len(weight)), stacked))
    return out


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
    images, nodes, channels = x.shape
    x, grad, edges = x.contiguous(), grad.contiguous(), (t_indptr, t_indices, t_values)
    stacked = weight.mT.flatten(0, 1)
    d_x = torch.empty_like(x)
    d_weight = x.new_zeros((channels, len(stacked)), dtype=accumulator(x.dtype))
    for some in _groups(images, nodes):
        sums = _sums(grad[some], edges, len(weight))
        d_x[some].flatten(0, 1).copy_(_product(sums, stacked))
        d_weight += _product(x[some].flatten(0, 1).T, sums)
        del sums  # before the next one is made
    return d_x, _by_type(d_weight, weight)


def propagate_regions(x: Tensor, boxes: Tensor, ptr: Tensor, weight: Tensor, bandwidth: Tensor) -> Tensor:
    graph = boxes.contiguous(), ptr.contiguous(), bandwidth
    sums = _region_sums(*graph)
    product = _product(_region_products(x, *graph, sums, "rows").flatten(1), weight.flatten(0, 1))
    return product.to(x.dtype)


def propagate_regions_backward(
    grad: Tensor, x: Tensor, boxes: Tensor, ptr: Tensor, weight: Tensor, bandwidth: Tensor, bandwidth_grad: bool
) -> tuple[Tensor, Tensor, Tensor]:
    graph = boxes.contiguous(), ptr.contiguous(), bandwidth
    sums = _region_sums(*graph, mean=bandwidth_grad)
    products = _region_products(grad, *graph, sums, "columns").flatten(1)
    d_x = _product(products, weight.mT.flatten(0, 1)).to(x.dtype)
    d_weight = _by_type(_product(x.T, products), weight)
    del products  # before the slopes are made
    d_bandwidth = torch.zeros_like(bandwidth)
    if bandwidth_grad:
        real = bandwidth.dtype
        slopes = _region_products(x, *graph, sums, "slope").flatten(1)
        changes = _product(slopes, weight[: SIDES.value].to(real).flatten(0, 1)) * grad
        d_bandwidth.copy_(changes.sum(dtype=torch.float64) / bandwidth.double() ** 2)
    return d_x, d_weight, d_bandwidth


def _groups(images: int, nodes: int) -> Iterator[slice]:
    """Images whose sums are made and multiplied together."""
    most = max(GROUP // max(nodes, 1), 1)
    return (slice(first, min(first + most, images)) for first in range(0, images, most))


def _sums(x: Tensor, edges: tuple[Tensor, Tensor, Tensor], types: int) -> Tensor:
    """A_t x of all types t, [images * nodes, types * channels], for edges in CSR."""
    images, nodes, channels = x.shape
    out = x.new_empty((images * nodes, types * channels))
    if out.numel():
        constants, options = _constants(x.dtype, channels)
        grid = (images * nodes * types, triton.cdiv(channels, constants["BLOCK"]))
        indptr, indices, values = (t.contiguous() for t in edges)
        propagate_kernel[grid](x, indptr, indices, values, out, nodes, types, channels, **constants, **options)
    return out


def _region_sums(boxes: Tensor, ptr: Tensor, bandwidth: Tensor, mean: bool = False) -> Tensor:
    """What every row of the adjacency is divided by, and more: [COLUMNS, regions] of the bandwidth's dtype."""
    images, regions = len(ptr) - 1, len(boxes)
    sums = bandwidth.new_empty((COLUMNS.value, regions))
    if regions:
        constants, options = _sum_constants(bandwidth.dtype, mean)
        grid = (regions // constants["BLOCK_M"] + images,)
        propagate_regions_sums_kernel[grid](boxes, ptr, bandwidth, sums, images, regions, **constants, **options)
    return sums


def _region_products(x: Tensor, boxes: Tensor, ptr: Tensor, bandwidth: Tensor, sums: Tensor, way: str) -> Tensor:
    """[regions, types, channels]: of x's dtype; only of the sides, and not rounded to another dtype, for "slope"."""
    images, (regions, channels) = len(ptr) - 1, x.shape
    kinds, dtype = (SIDES.value, bandwidth.dtype) if way == "slope" else (SIDES.value + 1, x.dtype)
    out = x.new_empty((regions, kinds, channels), dtype=dtype)
    if out.numel():
        constants, options = _region_constants(x.dtype, channels, way)
        tiles = regions // constants["BLOCK_M"] + images
        grid = (tiles, kinds, triton.cdiv(channels, constants["BLOCK_N"]))
        given = (x.contiguous(), boxes, ptr, bandwidth, sums, out, images, regions, channels)
        propagate_regions_kernel[grid](*given, **constants, **options)
    return out


def _product(a: Tensor, b: Tensor) -> Tensor:
    """a @ b, summed in float32 and not rounded to another dtype (float64 for float64), whatever autocast says.

    On a CPU, where kernels are interpreted, it is exact: what tests measure there are the errors of the kernels.
    """
    real = accumulator(a.dtype)
    with torch.autocast(a.device.type, enabled=False):
        if not a.is_cuda:
            return torch.mm(a.double(), b.double()).to(real)
        return torch.mm(a, b) if a.dtype == real else torch.mm(a, b, out_dtype=real)


def _by_type(stacked: Tensor, weight: Tensor) -> Tensor:
    """The weights' gradient [types, channels, outputs] of one that is [channels, types * outputs]."""
    gradient = stacked.view(weight.transpose(0, 1).shape).transpose(0, 1)
    return torch.empty_like(weight, memory_format=torch.contiguous_format).copy_(gradient)


def _constants(dtype: torch.dtype, channels: int) -> tuple[dict, dict]:
    """Compile-time arguments of propagate_kernel, and how it is compiled; a block is no larger than it need be."""
    block, warps = CHANNELS[dtype.itemsize]
    constants = {
        "REAL": tl.float64 if dtype == torch.float64 else tl.float32,
        "BLOCK": min(block, triton.next_power_of_2(channels)),
    }
    return constants, {"num_warps": warps, "num_stages": 1}


def _sum_constants(real: torch.dtype, mean: bool) -> tuple[dict, dict]:
    """The same for propagate_regions_sums_kernel."""
    options = {name: SUMS[name] for name in ("num_warps", "num_stages")}
    constants = {name: size for name, size in SUMS.items() if name not in options}
    return {"REAL": tl.float64 if real == torch.float64 else tl.float32, "MEAN": mean} | constants, options | BOUND


def _region_constants(dtype: torch.dtype, channels: int, way: str) -> tuple[dict, dict]:
    """The same for propagate_regions_kernel.

    The adjacency is not rounded to a dtype of 16 bits, and with it x is multiplied as tf32, which holds all of its
    bits. Of the slope's products one number remains, which may be small: they are those of float32.
    """
    sizes = TILES[max(dtype.itemsize, 4) if way == "slope" else dtype.itemsize]
    options = {name: sizes[name] for name in ("num_warps", "num_stages")}
    constants = {name: size for name, size in sizes.items() if name not in options}
    constants["BLOCK_N"] = min(constants["BLOCK_N"], max(triton.next_power_of_2(channels), 16))
    tf32 = way != "slope" and dtype.itemsize == 2
    tf32 |= dtype == torch.float32 and torch.backends.cuda.matmul.fp32_precision == "tf32"  # as PyTorch's own products
    real = tl.float64 if dtype == torch.float64 else tl.float32
    return {"REAL": real, "PRECISION": "tf32" if tf32 else "ieee", "WAY": way} | constants, options


def kernels(channels: int = 512, dtypes: Sequence[torch.dtype] = (torch.float32, torch.bfloat16)) -> list[dict]:
    """Every kernel as it is launched for x of these dtypes: the fields of irnet.bench.compiled.TritonKernel."""
    shipped = []
    for dtype in dtypes:
        real = accumulator(dtype)
        launched = [(propagate_kernel, {"values": "*fp32"}, _constants(dtype, channels))]
        for way in ("rows", "columns", "slope"):
            others = {"out": TRITON_NAMES[real]} if way == "slope" else {}
            launched.append((propagate_regions_kernel, others, _region_constants(dtype, channels, way)))
        if dtype == real:
            launched += [(propagate_regions_sums_kernel, {}, _sum_constants(real, mean)) for mean in (False, True)]
        for kernel, types, (constants, options) in launched:
            types = {"indptr": "*i64", "indices": "*i32", "ptr": "*i64", "boxes": "*fp32"} | types
            types |= dict.fromkeys(("bandwidth", "sums"), TRITON_NAMES[real])
            types |= dict.fromkeys(("nodes", "types", "images", "regions", "channels"), "i32")
            types = {n: types.get(n, TRITON_NAMES[dtype]) for n in kernel.arg_names if n not in constants}
            multiples = tuple(name for name in ("channels",) if name in types)
            arguments = {"function": kernel, "types": types, "constexprs": constants, "multiples_of_16": multiples}
            further = {name: options.pop(name) for name in BOUND if name in options}
            shipped.append(arguments | options | {"options": further})
    return shipped
