"""propagate, propagate_regions and their gradients in Triton, for GPUs where nobody compiled anything. Nothing of
PyTorch's dispatcher lives here: dispatch.py registers the launchers.

For edges that are given, kernels make the sums of all types, [rows, types * channels] in memory; the products with the
weights of all types are one product of PyTorch's. dx is the same over transposed edges and with transposed weights, and
the sums that it is made of give the weights' gradient, too: (A_t x)' g = x' (A_t' g). So nothing is kept but the
inputs, one buffer of sums exists at a time, and backward makes them once.

Regions have edges to all regions of their image. A program has BLOCK_M regions of one image and goes over the image by
BLOCK_K: it makes tiles of the adjacency from boxes and multiplies them with rows of memory, so that nothing of size
R x R is stored. What a row of the adjacency is divided by, and what else a pair needs of its regions, one kernel leaves
in a table before. Forward, the rows are x W_t, and all types go into one sum: the pairs are made once for all of them
and for 256 channels, and R x D leave the kernel in place of R x 5 D. Backward, the rows are the gradient's and the sums
those of each type, which dx and the weights' gradient are both made of.

The geometry is computed without branches. `div.rn` and `sqrt.rn` branch to a slow path for an operand of 0, which every
row has: distances count from the nearest region on. triton_shared has division and roots without a branch.

There are no atomics, nothing is read on the host. Sums go in an order that follows from the shapes and `ptr` alone.
Whatever boxes and `ptr` hold, nothing outside the tensors is touched; edges are trusted.
"""

from collections.abc import Iterator, Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

# Absolute: this file also runs as a copy outside of its package.
from irnet_kernels.numerics import float32_reductions, opmath_dtype
from irnet_kernels.triton_shared import (
    POINTERS,
    acc_type,
    divide,
    dot,
    exp_between,
    precision,
    quotient,
    reciprocal,
    rounded,
    split,
    square_root,
)

GROUP = 16384  # rows of the buffer of sums that images of a batch share; one image has as many as it needs
# What is launched, by the bytes of the dtype; nothing is tuned at run time.
EDGES = tl.constexpr(8)  # rows that are on their way from memory at the same time
CHANNELS = {2: (512, 2), 4: (512, 4), 8: (256, 4)}  # of a program of propagate, and its warps: 16 bytes a lane
TABLE = {
    4: {"BLOCK_M": 16, "BLOCK_K": 32, "num_warps": 4, "num_stages": 1},
    8: {"BLOCK_M": 16, "BLOCK_K": 8, "num_warps": 4, "num_stages": 1},
}
# Registers of that kernel, by MEAN: without a bound ptxas spills to have more programs at once.
BOUND = {4: {False: 128, True: 168}, 8: {False: 168, True: 168}}
FORWARD = {
    2: {"BLOCK_M": 64, "BLOCK_N": 256, "BLOCK_K": 16, "num_warps": 4, "num_stages": 2},
    4: {"BLOCK_M": 32, "BLOCK_N": 128, "BLOCK_K": 16, "num_warps": 8, "num_stages": 2},
    8: {"BLOCK_M": 16, "BLOCK_N": 16, "BLOCK_K": 4, "num_warps": 8, "num_stages": 1},
}
# BLOCK_N of 2 bytes by compute capability: for more, registers do not suffice on sm_80, where matrix products take more
# of them, nor does the tensor memory of sm_100, of which Triton gives every product in the loop its own.
FORWARD_WIDTH = {80: 128, 90: 256, 100: 64}
BACKWARD = {
    2: {"BLOCK_M": 64, "BLOCK_N": 128, "BLOCK_K": 16, "num_warps": 4, "num_stages": 2},
    4: {"BLOCK_M": 32, "BLOCK_N": 128, "BLOCK_K": 16, "num_warps": 8, "num_stages": 2},
    8: {"BLOCK_M": 16, "BLOCK_N": 16, "BLOCK_K": 4, "num_warps": 8, "num_stages": 1},
}
SCALE = tl.constexpr(4096.0)  # of weights in float16, whose parts would be subnormal; they are no more than 1
ALIGNED = tl.constexpr(4)  # regions in the table: 16 bytes of float32
# Regions that a block has at most: so many are loaded beyond the last one.
MOST = max(
    sizes[name] for table in (TABLE, FORWARD, BACKWARD) for sizes in table.values() for name in ("BLOCK_M", "BLOCK_K")
)
IMAGES = tl.constexpr(128)  # whose places a program looks up together

# What is kept of a region, by columns of ACC_DTYPE [.., regions]: of its rows of the adjacency, the distance of the
# nearest one on each side, what the five types are multiplied by, and the mean of a side's distances, from the nearest
# on; then what `_boxes` gives, but for the centres.
SIDES = tl.constexpr(4)  # left, right, above, below; then comes the overlap
INVERSES, MEANS, BOXES, COLUMNS = tl.constexpr(4), tl.constexpr(9), tl.constexpr(13), tl.constexpr(19)


# Edges that are given


@triton.jit(do_not_specialize=("nodes", "types"))
def propagate_kernel(
    x, indptr, indices, values, out, nodes, types, channels,
    ACC_DTYPE: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """A program makes the sum over the edges of one type into one node of one image, in the order of the edges."""
    program = tl.program_id(0)
    node, edge_type = program // types % nodes, program % types
    channel = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = channel < channels
    source = x + (program // types // nodes).to(tl.int64) * nodes * channels + channel
    row = indptr + edge_type * nodes + node
    first, last = tl.load(row), tl.load(row + 1)
    total = tl.zeros((BLOCK,), ACC_DTYPE)
    for edge in range(first, last, EDGES):
        for i in tl.static_range(EDGES):
            valid = edge + i < last
            neighbour = tl.load(indices + edge + i, mask=valid, other=0).to(tl.int64)
            weight = tl.load(values + edge + i, mask=valid, other=0.0).to(ACC_DTYPE)
            total += weight * tl.load(source + neighbour * channels, mask=inside & valid, other=0.0).to(ACC_DTYPE)
    target = out + program.to(tl.int64) * channels + channel
    tl.store(target, rounded(total, out.dtype.element_ty), mask=inside)


# Edges between the regions of an image


@triton.jit
def _tile(ptr, images, regions, BLOCK: tl.constexpr):
    """A program's first region and the number of regions, both of its image; where the image begins, and where in the
    table. Left-over programs begin at the end.

    Image b has the programs from ptr[b] // BLOCK + b on: one for every BLOCK regions and at most one too many. The same
    rule gives it a part of the table that begins at a multiple of ALIGNED.
    """
    program = tl.program_id(0)
    before = images * 0
    for start in range(0, images, IMAGES):  # in one step, for most batches, and not one load after another
        image = start + tl.arange(0, IMAGES)
        low = tl.load(ptr + image, mask=image < images, other=0)
        before += tl.sum(((low // BLOCK + image <= program) & (image < images)).to(tl.int32), 0)
    image = tl.maximum(before - 1, 0)
    begin = tl.minimum(tl.maximum(tl.load(ptr + image), 0), regions)
    end = tl.minimum(tl.load(ptr + image + 1, mask=image < images, other=0), regions)
    count = tl.maximum(end - begin, 0)
    first = tl.minimum(tl.maximum(program - image - begin // BLOCK, 0) * BLOCK, count)
    return first.to(tl.int32), count.to(tl.int32), begin, (begin // ALIGNED + image) * ALIGNED


@triton.jit
def _held(corner, usable, SIGN: tl.constexpr):
    return tl.where(usable, tl.minimum(tl.maximum(corner, -1e37), 1e37), SIGN * float("inf"))


@triton.jit
def _boxes(boxes, region, end, ACC_DTYPE: tl.constexpr):
    """Edges x1, y1, x2, y2, centres x, y, and 1 / width, 1 / height of regions, as reference.py holds them.

    Regions without edges of the graph (a NaN, an infinity, none at all) have inf and -inf for edges, with which nothing
    overlaps, and so a NaN for a centre, which is on no side of anything.
    """
    corner, inside = boxes + region * 4, region < end
    x1 = tl.load(corner, mask=inside, other=float("nan"))
    y1 = tl.load(corner + 1, mask=inside, other=float("nan"))
    x2 = tl.load(corner + 2, mask=inside, other=float("nan"))
    y2 = tl.load(corner + 3, mask=inside, other=float("nan"))
    usable = (x1 - x1 == 0) & (y1 - y1 == 0) & (x2 - x2 == 0) & (y2 - y2 == 0)
    x1, y1 = _held(x1, usable, 1).to(ACC_DTYPE), _held(y1, usable, 1).to(ACC_DTYPE)
    x2, y2 = _held(x2, usable, -1).to(ACC_DTYPE), _held(y2, usable, -1).to(ACC_DTYPE)
    return x1, y1, x2, y2, (x1 + x2) * 0.5, (y1 + y2) * 0.5, _inverse(x2 - x1), _inverse(y2 - y1)


@triton.jit
def _inverse(length):
    """1 / length; 0 where there is no extent, and so nothing to overlap with."""
    extended = length > 1.2e-38
    return tl.where(extended, reciprocal(tl.where(extended, length, 1.0)), 0.0)


@triton.jit
def _load_boxes(table, index, inside, stride, ROWS: tl.constexpr = 1):
    """What `_boxes` gives, from where the first kernel left it; what is not inside is loaded, and is on no side.

    Triton distributes all that is computed from a large load over the threads as it distributes the load. So the first
    load is repeated for ROWS rows: then a thread has several neighbours of one row, the values of its rows take few
    registers, and weights go to shared memory in the order in which threads hold them.
    """
    row = table + BOXES * stride + index
    x1 = tl.where(inside, tl.load(row + tl.zeros((ROWS, 1), tl.int32)), float("inf"))
    y1 = tl.where(inside, tl.load(row + stride), float("inf"))
    x2 = tl.where(inside, tl.load(row + 2 * stride), -float("inf"))
    y2 = tl.where(inside, tl.load(row + 3 * stride), -float("inf"))
    return x1, y1, x2, y2, (x1 + x2) * 0.5, (y1 + y2) * 0.5, tl.load(row + 4 * stride), tl.load(row + 5 * stride)


@triton.jit
def _load_pair(table, column, index, stride):
    """Two neighbouring columns: of the side where coordinates are smaller, and of the other."""
    row = table + column * stride + index
    return tl.load(row), tl.load(row + stride)


@triton.jit
def _distance(x, y):
    """sqrt(x^2 + y^2), the same bits in every kernel and for (y, x): what is far differs from the nearest by few.

    Of points that coincide it is not 0, but they are on no side of each other.
    """
    x, y = tl.abs(x), tl.abs(y)
    long, short = tl.maximum(x, y), tl.minimum(x, y)
    far = long > 1e18  # and its square may overflow
    scale = tl.where(far, 2.0**-64, 1.0)
    long, short = long * scale, short * scale
    root = square_root(tl.maximum(tl.fma(long, long, short * short), 1e-37))
    return root * tl.where(far, 2.0**64, 1.0)


@triton.jit
def _kappa(beyond, bandwidth, inverse):
    """exp(-beyond / bandwidth); inverse is 1 / bandwidth. Beyond 87.4 bandwidths it is 0 in float32."""
    if beyond.dtype == tl.float64:
        result = tl.exp(-beyond / bandwidth)
    else:
        result = exp_between(-quotient(tl.minimum(beyond, bandwidth * 87.4), bandwidth, inverse))
    return result


@triton.jit
def _beyond(distance, low, nearest, other_nearest):
    """How much farther than the nearest one of their side regions are: of the side `low`, and of the other.

    It is anything for those on neither side; their weights are never used.
    """
    return distance - tl.where(low, nearest, other_nearest)


@triton.jit
def _overlap(x1, y1, x2, y2, across, down, u1, v1, u2, v2, u_across, v_down, pair):
    """The IoU of pairs of boxes, made of the shares of both that the intersection has; 0 for others."""
    width, height = tl.minimum(x2, u2) - tl.maximum(x1, u1), tl.minimum(y2, v2) - tl.maximum(y1, v1)
    pair = pair & (width > 0) & (height > 0)
    one, other = (width * across) * (height * down), (width * u_across) * (height * v_down)
    union = tl.maximum(tl.fma(-one, other, one + other), 1e-37)  # in products of both areas over the intersection
    return tl.where(pair, one * (other * reciprocal(tl.where(pair, union, 1.0))), 0.0)


@triton.jit
def _tf32(value):
    """Rounded to what matrix units take of a float32, which they would cut."""
    return ((value.to(tl.int32, bitcast=True) + 0x1000) & -0x2000).to(tl.float32, bitcast=True)


@triton.jit
def _add_product(total, weight, side, rows, PRECISION: tl.constexpr):
    """total + (weight where on the side, else 0) @ rows.

    Rows of 16 bits are multiplied with weights in two parts of 16 bits, which hold all that tf32 would, and more.
    """
    weight = tl.where(side, weight, 0.0)
    if rows.dtype.primitive_bitwidth == 16:
        if rows.dtype == tl.float16:
            weight *= SCALE
        if rows.dtype == tl.bfloat16:  # cut, which takes one operation
            upper = (weight.to(tl.int32, bitcast=True) & -0x10000).to(tl.float32, bitcast=True)
        else:
            upper = weight.to(rows.dtype).to(tl.float32)
        lower = rounded(weight - upper, rows.dtype)
        total = dot(lower, rows, dot(upper.to(rows.dtype), rows, total, PRECISION), PRECISION)
    else:
        total = dot(_tf32(weight) if PRECISION == "tf32" else weight, rows, total, PRECISION)
    return total


@triton.jit
def _stored(total, rows: tl.constexpr, dtype: tl.constexpr):
    """The sum of `_add_product`s of rows of dtype `rows`, in another dtype."""
    return rounded(total * (1 / SCALE) if rows == tl.float16 else total, dtype)


@triton.jit
def _nearer(nearest, distance, side):
    return tl.minimum(nearest, tl.where(side, distance, float("inf")))


@triton.jit
def _store_column(table, column, index, inside, stride, value):
    tl.store(table + column * stride + index[:, None], value, mask=inside[:, None])


@triton.jit
def _store_side(table, side, index, inside, stride, nearest, total, mean, MEAN: tl.constexpr):
    """Of one side; `total` and `mean` are still to be summed along the rows."""
    inverse = _inverse(tl.sum(total, 1))[:, None]
    _store_column(table, side, index, inside, stride, nearest)
    _store_column(table, INVERSES + side, index, inside, stride, inverse)
    if MEAN:
        _store_column(table, MEANS + side, index, inside, stride, tl.sum(mean, 1)[:, None] * inverse)


@triton.jit(do_not_specialize=("images", "regions"))
def propagate_regions_table_kernel(
    boxes, ptr, bandwidth, table, images, regions, stride,
    ACC_DTYPE: tl.constexpr, MEAN: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """All columns of a program's regions: `table` [COLUMNS, stride], the means only if MEAN."""
    first, count, begin, table_begin = _tile(ptr, images, regions, BLOCK_M)
    last = tl.where(first < count, count, 0)
    own = first + tl.arange(0, BLOCK_M)
    boxes, table, inside = boxes + 4 * begin, table + table_begin, own < count
    x1, y1, x2, y2, x, y, across, down = _boxes(boxes, own[:, None], count, ACC_DTYPE)
    left = tl.full((BLOCK_M, BLOCK_K), float("inf"), ACC_DTYPE)
    right, above, below = left, left, left
    for start in range(0, last, BLOCK_K):
        _, _, _, _, u, v, _, _ = _boxes(boxes, (start + tl.arange(0, BLOCK_K))[None, :], count, ACC_DTYPE)
        distance = _distance(x - u, y - v)
        left, right = _nearer(left, distance, u < x), _nearer(right, distance, u > x)
        above, below = _nearer(above, distance, v < y), _nearer(below, distance, v > y)
    left, right = tl.min(left, 1)[:, None], tl.min(right, 1)[:, None]
    above, below = tl.min(above, 1)[:, None], tl.min(below, 1)[:, None]

    zero = tl.zeros((BLOCK_M, BLOCK_K), ACC_DTYPE)
    to_left, to_right, to_above, to_below, overlap = zero, zero, zero, zero, zero
    left_mean, right_mean, above_mean, below_mean = zero, zero, zero, zero
    scale = tl.load(bandwidth)
    inverse = divide(tl.full((), 1, ACC_DTYPE), scale)
    for start in range(0, last, BLOCK_K):
        other = (start + tl.arange(0, BLOCK_K))[None, :]
        u1, v1, u2, v2, u, v, u_across, v_down = _boxes(boxes, other, count, ACC_DTYPE)
        distance = _distance(x - u, y - v)
        beyond = _beyond(distance, u < x, left, right)
        kappa = _kappa(beyond, scale, inverse)
        to_left, to_right = to_left + tl.where(u < x, kappa, 0.0), to_right + tl.where(u > x, kappa, 0.0)
        if MEAN:
            left_mean += tl.where(u < x, kappa * beyond, 0.0)
            right_mean += tl.where(u > x, kappa * beyond, 0.0)
        beyond = _beyond(distance, v < y, above, below)
        kappa = _kappa(beyond, scale, inverse)
        to_above, to_below = to_above + tl.where(v < y, kappa, 0.0), to_below + tl.where(v > y, kappa, 0.0)
        if MEAN:
            above_mean += tl.where(v < y, kappa * beyond, 0.0)
            below_mean += tl.where(v > y, kappa * beyond, 0.0)
        overlap += _overlap(x1, y1, x2, y2, across, down, u1, v1, u2, v2, u_across, v_down, other != own[:, None])
    _store_side(table, 0, own, inside, stride, left, to_left, left_mean, MEAN)
    _store_side(table, 1, own, inside, stride, right, to_right, right_mean, MEAN)
    _store_side(table, 2, own, inside, stride, above, to_above, above_mean, MEAN)
    _store_side(table, 3, own, inside, stride, below, to_below, below_mean, MEAN)
    _store_column(table, INVERSES + SIDES, own, inside, stride, _inverse(tl.sum(overlap, 1))[:, None])
    _store_column(table, BOXES, own, inside, stride, x1)
    _store_column(table, BOXES + 1, own, inside, stride, y1)
    _store_column(table, BOXES + 2, own, inside, stride, x2)
    _store_column(table, BOXES + 3, own, inside, stride, y2)
    _store_column(table, BOXES + 4, own, inside, stride, across)
    _store_column(table, BOXES + 5, own, inside, stride, down)


@triton.jit(do_not_specialize=("images", "regions"))
def propagate_regions_forward_kernel(
    mapped, ptr, bandwidth, table, out, images, regions, stride, channels,
    ACC_DTYPE: tl.constexpr, PRECISION: tl.constexpr, EVEN: tl.constexpr, SLOPE: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """The sum over types of their adjacency times `mapped` [types, regions, channels], which is x times the weights of
    each type; or, if SLOPE, of the sides' derivatives to the bandwidth, times its square. A program makes the pairs of
    its regions once, for all types and all of its channels."""
    first, count, begin, table_begin = _tile(ptr, images, regions, BLOCK_M)
    last = tl.where(first < count, count, 0)
    own = first + tl.arange(0, BLOCK_M)
    channel = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)
    table, index, inside = table + table_begin, own[:, None], (own < count)[:, None]
    _, _, _, _, x, y, _, _ = _load_boxes(table, index, inside, stride)
    left, right = _load_pair(table, 0, index, stride)
    above, below = _load_pair(table, 2, index, stride)
    to_left, to_right = _load_pair(table, INVERSES, index, stride)
    to_above, to_below = _load_pair(table, INVERSES + 2, index, stride)
    if SLOPE:
        left_mean, right_mean = _load_pair(table, MEANS, index, stride)
        above_mean, below_mean = _load_pair(table, MEANS + 2, index, stride)
    scale = tl.load(bandwidth)
    inverse = divide(tl.full((), 1, ACC_DTYPE), scale)
    total = tl.zeros((BLOCK_M, BLOCK_N), ACC_DTYPE)
    plane = regions.to(tl.int64) * channels
    offset = tl.arange(0, BLOCK_K)[:, None] * channels + channel[None, :]
    for start in range(0, last, BLOCK_K):
        other = start + tl.arange(0, BLOCK_K)
        other_index, valid = other[None, :], (other < count)[None, :]
        mask = (other < count)[:, None] if EVEN else (other < count)[:, None] & (channel < channels)[None, :]
        source = mapped + (begin + start) * channels
        u1, v1, u2, v2, u, v, u_across, v_down = _load_boxes(table, other_index, valid, stride, BLOCK_M)
        distance = _distance(x - u, y - v)
        beyond = _beyond(distance, u < x, left, right)
        weight = _kappa(beyond, scale, inverse) * tl.where(u < x, to_left, to_right)
        if SLOPE:
            weight *= beyond - tl.where(u < x, left_mean, right_mean)
        rows = tl.load(source + offset, mask=mask, other=0.0)
        total = _add_product(total, weight, u < x, rows, PRECISION)
        rows = tl.load(source + plane + offset, mask=mask, other=0.0)
        total = _add_product(total, weight, u > x, rows, PRECISION)
        beyond = _beyond(distance, v < y, above, below)
        weight = _kappa(beyond, scale, inverse) * tl.where(v < y, to_above, to_below)
        if SLOPE:
            weight *= beyond - tl.where(v < y, above_mean, below_mean)
        rows = tl.load(source + 2 * plane + offset, mask=mask, other=0.0)
        total = _add_product(total, weight, v < y, rows, PRECISION)
        rows = tl.load(source + 3 * plane + offset, mask=mask, other=0.0)
        total = _add_product(total, weight, v > y, rows, PRECISION)
        if not SLOPE:
            # These values are loaded again in every step, from a cache, so that they take no registers between. The
            # added start // 2^30 is always 0: it stops the compiler from hoisting the loads out of the loop.
            x1, y1, x2, y2, _, _, across, down = _load_boxes(table, index + start // 2**30, inside, stride)
            overlap_inverse = tl.load(table + (INVERSES + SIDES) * stride + index + start // 2**30)
            pair = own[:, None] != other[None, :]
            weight = _overlap(x1, y1, x2, y2, across, down, u1, v1, u2, v2, u_across, v_down, pair) * overlap_inverse
            rows = tl.load(source + 4 * plane + offset, mask=mask, other=0.0)
            total = _add_product(total, weight, pair, rows, PRECISION)
    target = out + (begin + own)[:, None] * channels + channel[None, :]
    stored = inside if EVEN else inside & (channel < channels)[None, :]
    tl.store(target, _stored(total, mapped.dtype.element_ty, out.dtype.element_ty), mask=stored)


@triton.jit(do_not_specialize=("images", "regions"))
def propagate_regions_backward_kernel(
    grad, ptr, bandwidth, table, out, images, regions, stride, channels,
    ACC_DTYPE: tl.constexpr, PRECISION: tl.constexpr, EVEN: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """Each type's transposed adjacency times grad: `out` [regions, types, channels]. A program makes both sides along
    one axis, or the overlaps: what is divided by is known of the other region, which is the one that receives."""
    first, count, begin, table_begin = _tile(ptr, images, regions, BLOCK_M)
    last = tl.where(first < count, count, 0)
    axis = tl.program_id(1)
    own = first + tl.arange(0, BLOCK_M)
    channel = tl.program_id(2) * BLOCK_N + tl.arange(0, BLOCK_N)
    table, index, inside = table + table_begin, own[:, None], (own < count)[:, None]
    x1, y1, x2, y2, x, y, across, down = _load_boxes(table, index, inside, stride)
    offset = tl.arange(0, BLOCK_K)[:, None] * channels + channel[None, :]
    target = out + (begin + first) * 5 * channels + tl.arange(0, BLOCK_M)[:, None] * 5 * channels + channel[None, :]
    stored = inside if EVEN else inside & (channel < channels)[None, :]
    total = tl.zeros((BLOCK_M, BLOCK_N), ACC_DTYPE)
    if axis == 2:
        for start in range(0, last, BLOCK_K):
            other = start + tl.arange(0, BLOCK_K)
            other_index, valid = other[None, :], (other < count)[None, :]
            mask = (other < count)[:, None] if EVEN else (other < count)[:, None] & (channel < channels)[None, :]
            rows = tl.load(grad + (begin + start) * channels + offset, mask=mask, other=0.0)
            u1, v1, u2, v2, u, v, u_across, v_down = _load_boxes(table, other_index, valid, stride, BLOCK_M)
            inverse = tl.load(table + (INVERSES + SIDES) * stride + other_index)
            pair = valid & (own[:, None] != other[None, :])
            weight = _overlap(x1, y1, x2, y2, across, down, u1, v1, u2, v2, u_across, v_down, pair) * inverse
            total = _add_product(total, weight, pair, rows, PRECISION)
        tl.store(target + SIDES * channels, _stored(total, grad.dtype.element_ty, out.dtype.element_ty), mask=stored)
    else:
        scale = tl.load(bandwidth)
        inverse = divide(tl.full((), 1, ACC_DTYPE), scale)
        along, second = tl.where(axis == 0, x, y), total
        for start in range(0, last, BLOCK_K):
            other = start + tl.arange(0, BLOCK_K)
            other_index, valid = other[None, :], (other < count)[None, :]
            mask = (other < count)[:, None] if EVEN else (other < count)[:, None] & (channel < channels)[None, :]
            rows = tl.load(grad + (begin + start) * channels + offset, mask=mask, other=0.0)
            u1, v1, u2, v2, u, v, u_across, v_down = _load_boxes(table, other_index, valid, stride, BLOCK_M)
            low, high = _load_pair(table, 2 * axis, other_index, stride)
            to_low, to_high = _load_pair(table, INVERSES + 2 * axis, other_index, stride)
            receiver = tl.where(axis == 0, u, v)
            beyond = _beyond(_distance(x - u, y - v), along < receiver, low, high)
            weight = _kappa(beyond, scale, inverse) * tl.where(along < receiver, to_low, to_high)
            total = _add_product(total, weight, along < receiver, rows, PRECISION)
            second = _add_product(second, weight, along > receiver, rows, PRECISION)
        target += 2 * axis * channels
        tl.store(target, _stored(total, grad.dtype.element_ty, out.dtype.element_ty), mask=stored)
        tl.store(target + channels, _stored(second, grad.dtype.element_ty, out.dtype.element_ty), mask=stored)


# Launchers, with the operators' own signatures


def propagate(x: Tensor, edges: list[Tensor], weight: Tensor) -> Tensor:
    images, nodes, _ = x.shape
    x, stacked = x.contiguous(), weight.flatten(0, 1).to(_wide(x.dtype))
    out = x.new_empty((images, nodes, weight.shape[2]))
    for some in _groups(images, nodes):
        out[some].flatten(0, 1).copy_(_product(_sums(x[some], edges[:3], len(weight)), stacked))
    return out


def propagate_backward(grad: Tensor, x: Tensor, edges: list[Tensor], weight: Tensor) -> tuple[Tensor, Tensor]:
    images, nodes, channels = x.shape
    x, grad = x.contiguous(), grad.contiguous()
    stacked = weight.mT.flatten(0, 1).to(_wide(x.dtype))
    d_x = torch.empty_like(x)
    d_weight = x.new_zeros((channels, len(stacked)), dtype=opmath_dtype(x.dtype))
    for some in _groups(images, nodes):
        sums = _sums(grad[some], edges[3:], len(weight))
        d_x[some].flatten(0, 1).copy_(_product(sums, stacked))
        d_weight += _product(x[some].flatten(0, 1).T.to(sums.dtype), sums)
        del sums  # before the next one is made
    return d_x, _by_type(d_weight, weight)


def propagate_regions(x: Tensor, boxes: Tensor, ptr: Tensor, weight: Tensor, bandwidth: Tensor) -> Tensor:
    ptr = ptr.contiguous()
    table = _table(boxes, ptr, bandwidth)
    mapped = _product(x.expand(len(weight), -1, -1), weight, _wide(x.dtype))
    return _region_sums(mapped, ptr, bandwidth, table).to(x.dtype)


def propagate_regions_backward(
    grad: Tensor, x: Tensor, boxes: Tensor, ptr: Tensor, weight: Tensor, bandwidth: Tensor, bandwidth_grad: bool
) -> tuple[Tensor, Tensor, Tensor]:
    ptr = ptr.contiguous()
    table = _table(boxes, ptr, bandwidth, mean=bandwidth_grad)
    products = _region_products(grad, ptr, bandwidth, table).flatten(1)
    d_x = _product(products, weight.mT.flatten(0, 1).to(products.dtype)).to(x.dtype)
    d_weight = _by_type(_product(x.T.to(products.dtype), products), weight)
    del products  # before the slopes are made
    d_bandwidth = torch.zeros_like(bandwidth)
    if bandwidth_grad:
        sides = weight[: SIDES.value]
        slopes = _region_sums(_product(x.expand(len(sides), -1, -1), sides), ptr, bandwidth, table, slope=True)
        d_bandwidth.copy_((slopes * grad).sum(dtype=torch.float64) / bandwidth.double() ** 2)
    return d_x, d_weight, d_bandwidth


def _groups(images: int, nodes: int) -> Iterator[slice]:
    """Images whose sums are made and multiplied together."""
    most = max(GROUP // max(nodes, 1), 1)
    return (slice(first, min(first + most, images)) for first in range(0, images, most))


def _sums(x: Tensor, csr: list[Tensor], types: int) -> Tensor:
    """A_t x of all types t for edges in CSR, [images * nodes, types * channels] of the dtype that is `_wide`."""
    images, nodes, channels = x.shape
    out = x.new_empty((images * nodes, types * channels), dtype=_wide(x.dtype))
    if out.numel():
        constants, options = _constants(x.dtype, channels)
        grid = (images * nodes * types, triton.cdiv(channels, constants["BLOCK"]))
        indptr, indices, values = (t.contiguous() for t in csr)
        propagate_kernel[grid](x, indptr, indices, values, out, nodes, types, channels, **constants, **options)
    return out


def _table(boxes: Tensor, ptr: Tensor, bandwidth: Tensor, mean: bool = False) -> Tensor:
    """What is kept of all regions, [COLUMNS, regions and gaps] of the bandwidth's dtype."""
    images, regions = len(ptr) - 1, len(boxes)
    stride = triton.cdiv(regions + ALIGNED.value * images + MOST, 16) * 16
    table = bandwidth.new_empty((COLUMNS.value, stride))
    if regions:
        constants, options = _table_constants(bandwidth.dtype, mean)
        grid = (regions // constants["BLOCK_M"] + images,)
        given = (boxes.contiguous(), ptr, bandwidth, table, images, regions, stride)
        propagate_regions_table_kernel[grid](*given, **constants, **options)
    return table


def _region_sums(mapped: Tensor, ptr: Tensor, bandwidth: Tensor, table: Tensor, slope: bool = False) -> Tensor:
    """The sum over types of A_t mapped_t, or of the sides' slopes: [regions, channels] of the dtype of `mapped`.

    Regions that no image owns have a slope of 0, for a gradient is summed over all of them.
    """
    images, (_, regions, channels) = len(ptr) - 1, mapped.shape
    out = (mapped.new_zeros if slope else mapped.new_empty)((regions, channels))
    if out.numel():
        constants, options = _forward_constants(mapped.dtype, channels, _capability(mapped.device), slope)
        grid = (regions // constants["BLOCK_M"] + images, triton.cdiv(channels, constants["BLOCK_N"]))
        given = (mapped, ptr, bandwidth, table, out, images, regions, table.shape[1], channels)
        propagate_regions_forward_kernel[grid](*given, **constants, **options)
    return out


def _region_products(grad: Tensor, ptr: Tensor, bandwidth: Tensor, table: Tensor) -> Tensor:
    """A_t' grad of all types t, [regions, types, channels] of the dtype that is `_wide` enough; 0 for regions
    that no image owns, for a gradient is summed over all of them."""
    images, (regions, channels) = len(ptr) - 1, grad.shape
    out = grad.new_zeros((regions, SIDES.value + 1, channels), dtype=_wide(grad.dtype))
    if out.numel():
        constants, options = _region_constants(BACKWARD[grad.dtype.itemsize], grad.dtype, channels)
        grid = (regions // constants["BLOCK_M"] + images, 3, triton.cdiv(channels, constants["BLOCK_N"]))
        given = (grad.contiguous(), ptr, bandwidth, table, out, images, regions, table.shape[1], channels)
        propagate_regions_backward_kernel[grid](*given, **constants, **options)
    return out


def _wide(dtype: torch.dtype) -> torch.dtype:
    """What is stored between two products of a dtype: float32 for float16, where more than 65504 would be infinite, and
    a weight of 0 would make a NaN of it."""
    return torch.float32 if dtype == torch.float16 else dtype


def _product(a: Tensor, b: Tensor, dtype: torch.dtype | None = None) -> Tensor:
    """a @ b, of matrices or of batches of them, whatever autocast says: summed in float32 and not rounded to another
    dtype (float64 for float64) unless to `dtype`.

    A product of 16 bits with a result of 16 bits may, as PyTorch is set up, add partial sums in 16 bits: not here.
    On a CPU, where kernels are interpreted, it is exact: what tests measure there are the errors of the kernels.
    """
    acc_dtype = opmath_dtype(a.dtype)
    with torch.autocast(a.device.type, enabled=False):
        if not a.is_cuda:
            return (a.double() @ b.double()).to(dtype or acc_dtype)
        multiply = torch.mm if a.dim() == 2 else torch.bmm
        if a.dtype == (dtype or acc_dtype):
            with float32_reductions():
                return multiply(a, b)
        return multiply(a, b, out_dtype=acc_dtype).to(dtype or acc_dtype)


def _by_type(stacked: Tensor, weight: Tensor) -> Tensor:
    """The weights' gradient [types, channels, outputs] of one that is [channels, types * outputs]."""
    gradient = stacked.view(weight.transpose(0, 1).shape).transpose(0, 1)
    return torch.empty_like(weight, memory_format=torch.contiguous_format).copy_(gradient)


def _constants(dtype: torch.dtype, channels: int) -> tuple[dict, dict]:
    """Compile-time arguments of propagate_kernel, and how it is compiled; a block is no larger than it need be."""
    block, warps = CHANNELS[dtype.itemsize]
    constants = {"ACC_DTYPE": acc_type(dtype), "BLOCK": min(block, triton.next_power_of_2(channels))}
    return constants, {"num_warps": warps, "num_stages": 1}


def _table_constants(dtype: torch.dtype, mean: bool) -> tuple[dict, dict]:
    """The same for propagate_regions_table_kernel, by the dtype in which is accumulated."""
    constants, options = split(TABLE[dtype.itemsize])
    options["maxnreg"] = BOUND[dtype.itemsize][mean]
    return {"ACC_DTYPE": acc_type(dtype), "MEAN": mean} | constants, options


def _forward_constants(dtype: torch.dtype, channels: int, capability: int, slope: bool) -> tuple[dict, dict]:
    """The same for propagate_regions_forward_kernel.

    Of the slope's products one number remains, which may be small: they are those of float32.
    """
    sizes = FORWARD[dtype.itemsize]
    if dtype.itemsize == 2:
        sizes = sizes | {"BLOCK_N": FORWARD_WIDTH[capability]}
    constants, options = _region_constants(sizes, dtype, channels)
    return constants | {"SLOPE": slope} | ({"PRECISION": "ieee"} if slope else {}), options


def _region_constants(sizes: dict, dtype: torch.dtype, channels: int) -> tuple[dict, dict]:
    """The same for propagate_regions_backward_kernel, given its row of BACKWARD."""
    constants, options = split(sizes)
    constants["BLOCK_N"] = min(constants["BLOCK_N"], max(triton.next_power_of_2(channels), 16))
    even = channels % constants["BLOCK_N"] == 0
    return {"ACC_DTYPE": acc_type(dtype), "PRECISION": precision(dtype), "EVEN": even} | constants, options


def _capability(device: torch.device) -> int:
    """The one of FORWARD_WIDTH that a device is like; sm_120 has the matrix units of sm_80. A CPU is like sm_90."""
    major = torch.cuda.get_device_capability(device)[0] if device.type == "cuda" else 9
    return {9: 90, 10: 100}.get(major, 80)


def kernels(channels: int = 512, dtypes: Sequence[torch.dtype] = (torch.float32, torch.bfloat16)) -> list[dict]:
    """Every kernel as it is launched for x of these dtypes: the fields of aot.compiled.TritonKernel."""
    shipped = []
    for dtype in dtypes:
        wide, every = opmath_dtype(dtype), tuple(FORWARD_WIDTH)
        backward = _region_constants(BACKWARD[dtype.itemsize], dtype, channels)
        launched = [
            (propagate_kernel, every, {"values": "*fp32"}, _constants(dtype, channels)),
            (propagate_regions_backward_kernel, every, {}, backward),
        ]
        for some in [(capability,) for capability in every] if dtype.itemsize == 2 else [every]:
            forward = _forward_constants(dtype, channels, some[0], slope=False)
            launched.append((propagate_regions_forward_kernel, some, {}, forward))
        if dtype == wide:
            forward = _forward_constants(dtype, channels, every[0], slope=True)
            launched.append((propagate_regions_forward_kernel, every, {}, forward))
            for mean in (False, True):
                launched.append((propagate_regions_table_kernel, every, {}, _table_constants(dtype, mean)))
        for kernel, targets, types, (constants, options) in launched:
            types = {"indptr": "*i64", "indices": "*i32", "ptr": "*i64", "boxes": "*fp32"} | types
            types |= dict.fromkeys(("bandwidth", "table"), POINTERS[wide])
            types |= dict.fromkeys(("nodes", "types", "images", "regions", "stride", "channels"), "i32")
            types = {n: types.get(n, POINTERS[dtype]) for n in kernel.arg_names if n not in constants}
            multiples = tuple(name for name in ("channels", "stride") if name in types)
            arguments = {"function": kernel, "types": types, "constexprs": constants, "multiples_of_16": multiples}
            further = {name: options.pop(name) for name in ("maxnreg",) if name in options}
            shipped.append(arguments | options | {"options": further, "targets": targets})
    return shipped
