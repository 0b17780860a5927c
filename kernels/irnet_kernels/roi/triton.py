"""crop_resize, paste_mean and their gradients in Triton, for GPUs where nobody compiled anything. Nothing of PyTorch's
dispatcher lives here: dispatch.py registers the launchers.

Positions are those of csrc/include/geometry.h to the bit, so kernels are compiled without fusion and ask for it, by
`tl.fma`, only where they sum. Whatever boxes and `ptr` hold, nothing outside the tensors is touched.

Maps are [images, height, width, channels] in memory, patches [regions, size, size, channels]. Every kernel gathers: a
program owns a part of the output and sums in the order of regions, rows and columns, so there are no atomics, and an
image's bits do not depend on its batch. A part is a tile [chunks, rows, columns, lanes]: lanes are the channels that a
warp reads at once, the warps share the columns, and what a cell costs a thread (position, weights, address) serves all
chunks.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

# Absolute: this file also runs as a copy outside of its package.
from irnet_kernels.numerics import empty_map
from irnet_kernels.triton_shared import acc_type, divide, rounded

# What is launched; nothing is tuned at run time. A thread has 2 cells or samples (ROWS * COLUMNS or SAMPLES by 4 warps)
# of 8 or 16 channels: with more of them registers run out, with fewer what a cell costs prevails.
ROWS, COLUMNS = 2, 4  # of the cells of a map that a program has
SAMPLES = 8  # of a patch's row that a program has at once
FOUR_CELLS, ONE_CELL = 1024, 2048  # bytes of a program's channels: as read, four cells at a time; as summed, one by one
ACCESS = 512  # bytes that a warp reads at once, 16 a lane
SCHEDULE = {"num_warps": 4, "num_stages": 1}
OPTIONS = {"enable_fp_fusion": False, "maxnreg": 168}  # without a bound ptxas spills to have more programs at once

BOXES = tl.constexpr(32)  # that are looked at together
CELLS = tl.constexpr(4)  # cells of one row that are weighted together for each of SAMPLES
TOLERANCE = tl.constexpr(1e-4)  # as in geometry.h
SIZES = ("images", "regions", "height", "width", "size")  # one kernel serves them all, also 1 and multiples of 16


# Positions and weights, of single numbers and of tiles


@triton.jit
def _clip(position, cells):
    """The nearest position on an axis of `cells`; a NaN stays one, which `tl.maximum` does not promise."""
    return tl.where(position < 0, 0.0, tl.where(position > cells - 1, (cells - 1).to(position.dtype), position))


@triton.jit
def _clamp_position(position, cells):
    """Whether a position is on an axis of `cells` (a NaN is not), and where exactly if it is."""
    last = cells - 1
    end = (last.to(tl.float64) + tl.full((), TOLERANCE, tl.float64)).to(position.dtype)
    inside = (position >= -TOLERANCE) & (position <= end)
    return inside, tl.minimum(tl.maximum(position, 0.0), last.to(position.dtype))


@triton.jit
def _tap(position, cells):
    """geometry.h's tap: whether inside, the two cells, and their weights. Outside, both cells are 0."""
    inside, position = _clamp_position(position, cells)
    position = tl.where(inside, position, 0.0)
    low = tl.minimum(position.to(tl.int32), cells - 1)
    high_weight = position - low.to(position.dtype)
    return inside, low, low + (high_weight > 0).to(tl.int32), 1 - high_weight, high_weight


@triton.jit
def _weight(position, cell, cells):
    """The tap's weight of one cell."""
    inside, position = _clamp_position(position, cells)
    cell = cell.to(position.dtype)
    weight = tl.where(position >= cell, 1 - (position - cell), position - (cell - 1))
    return tl.where(inside & (weight > 0), weight, 0.0)


@triton.jit
def _crop_spacing(low, high, size):
    return divide(high - low, tl.maximum(size - 1, 1).to(low.dtype))


@triton.jit
def _crop_position(low, spacing, index, size, cells, CLAMP: tl.constexpr):
    """Of sample `index` of `size`, on the map's axis."""
    position = low + tl.where(size > 1, index.to(low.dtype), 0.5) * spacing
    if CLAMP:  # what is infinite stays outside
        position = tl.where(position - position == 0, _clip(position, cells), position)
    return position


@triton.jit
def _paste_position(low, high, cell, size):
    """Of a map's cell, on the patch's axis; infinite or NaN where the box has no extent or an infinite one."""
    extent = high - low
    position = divide(cell.to(low.dtype) - low, extent) * (size - 1).to(low.dtype)
    return tl.where(extent - extent == 0, position, float("nan"))


@triton.jit
def _neighbours(index, origin, slope, indices, points):
    """Of the points 0 .. points - 1, those within |slope| of origin + slope * index, and perhaps some more.

    The first one for every index of `indices`, and how many there are at most. A slope that is infinite or NaN stands
    for all points.
    """
    slack = 1e-3 + 1e-6 * (tl.abs(origin) + tl.abs(slope) * indices + points)  # more than all roundings
    reach = tl.abs(slope) + slack
    first = tl.floor(origin + slope * index - reach) + 1
    count = tl.ceil(2 * reach)
    first = tl.where(first > 0, tl.where(first < points, first, points), 0)
    return first.to(tl.int32), tl.where(count < points, count, points).to(tl.int32)


@triton.jit
def _samples_near(low, spacing, cell, size, cells, border, CLAMP: tl.constexpr):
    """The samples that may touch a cell, as `_neighbours` tells them; `border` if some of the cells are on it."""
    low, spacing = low.to(tl.float32), spacing.to(tl.float32)
    high = low + spacing * (size - 1)
    every = size == 1
    if CLAMP:  # any number of samples may fall on the border
        every |= border & ((tl.minimum(low, high) < 0) | (tl.maximum(low, high) > cells - 1))
    slope = tl.where(every, float("inf"), divide(tl.full(spacing.shape, 1, tl.float32), spacing))
    return _neighbours(cell, -low * slope, slope, cells, size)


# Boxes and the images that own them


@triton.jit
def _box(boxes, region, end, ACC_DTYPE: tl.constexpr):
    """The edges x1, y1, x2, y2 of regions; NaN from `end` on."""
    corner, valid = boxes + region * 4, region < end
    x1 = tl.load(corner, mask=valid, other=float("nan")).to(ACC_DTYPE)
    y1 = tl.load(corner + 1, mask=valid, other=float("nan")).to(ACC_DTYPE)
    x2 = tl.load(corner + 2, mask=valid, other=float("nan")).to(ACC_DTYPE)
    y2 = tl.load(corner + 3, mask=valid, other=float("nan")).to(ACC_DTYPE)
    return x1, y1, x2, y2


@triton.jit
def _owned(image, ptr, images, regions):
    """The regions [begin, end) of an image, of those that there are."""
    begin, end = tl.load(ptr + image), tl.load(ptr + image + 1, mask=image < images, other=0)
    return tl.maximum(begin, 0), tl.minimum(end, regions)


@triton.jit
def _owner(region, ptr, images, regions):
    """The image of a region and that image's regions [begin, end). No image owns a region that is not among them."""
    low, high = images * 0, images
    while high - low > 1:
        middle = (low + high) // 2
        before = tl.load(ptr + middle) <= region
        low = tl.where(before, middle, low)
        high = tl.where(before, high, middle)
    begin, end = _owned(low, ptr, images, regions)
    return low.to(tl.int64), begin, end


@triton.jit
def _meets(low, high, first, count, cells, reach, share):
    """Whether boxes come within `reach` of `count` cells from `first` on, give or take `share` of their extent."""
    lower, upper = tl.minimum(low, high), tl.maximum(low, high)
    margin = reach + share * (upper - lower + cells)
    return (lower - margin <= first + count - 1) & (upper + margin >= first)


@triton.jit
def _hits(boxes, start, end, y, x, height, width, reach, share, ROWS: tl.constexpr, COLUMNS: tl.constexpr, CLAMP):
    """Which of the BOXES regions from `start` on may touch the tile at (y, x): a bit each, and perhaps some more."""
    x1, y1, x2, y2 = _box(boxes, start + tl.arange(0, BOXES), end, tl.float32)
    if CLAMP:  # samples beyond the map fall on its border
        y1, y2, x1, x2 = _clip(y1, height), _clip(y2, height), _clip(x1, width), _clip(x2, width)
    rows_meet = _meets(y1, y2, y, ROWS, height, reach, share)
    columns_meet = _meets(x1, x2, x, COLUMNS, width, reach, share)
    return tl.sum((rows_meet & columns_meet).to(tl.int64) << tl.arange(0, BOXES), 0)


@triton.jit
def _first_bit(bits):
    """The index of the lowest bit, by the exponent of that power of two as a float; and the other bits."""
    rest = bits & (bits - 1)
    return ((bits ^ rest).to(tl.float32).to(tl.int32, bitcast=True) >> 23) - 127, rest


@triton.jit
def _coverage(boxes, begin, end, y, x, size, ACC_DTYPE: tl.constexpr):
    """How many of the regions [begin, end) cover the cells (y, x), at least 1: [len(y), len(x)], whole numbers.

    The product of who covers the rows and who covers the columns, in exact arithmetic.
    """
    count = tl.zeros((y.shape[0], x.shape[0]), tl.float32)
    for start in range(begin, end, BOXES):
        x1, y1, x2, y2 = _box(boxes, start + tl.arange(0, BOXES), end, ACC_DTYPE)
        rows, _ = _clamp_position(_paste_position(y1[None, :], y2[None, :], y[:, None], size), size)
        columns, _ = _clamp_position(_paste_position(x1[:, None], x2[:, None], x[None, :], size), size)
        count = tl.dot(rows.to(tl.float16), columns.to(tl.float16), count)
    return tl.maximum(count, 1.0).to(ACC_DTYPE)


# Parts of the output


@triton.jit
def _channels(CHUNKS: tl.constexpr, LANES: tl.constexpr):
    """A program's channels: [CHUNKS, LANES]."""
    first = tl.program_id(1) * (CHUNKS * LANES)
    return first + tl.arange(0, CHUNKS)[:, None] * LANES + tl.arange(0, LANES)[None, :]


@triton.jit
def _tile(height, width, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """The image, first row and first column of a program's tile of a map."""
    down, across = (height + ROWS - 1) // ROWS, (width + COLUMNS - 1) // COLUMNS
    tile = tl.program_id(0)
    return (tile // across // down).to(tl.int64), tile // across % down * ROWS, tile % across * COLUMNS


@triton.jit
def _sampled(total, top, bottom, left, right, top_weight, bottom_weight, left_weight, right_weight, mask):
    """`total` and, where `mask`, the weighted values at offsets `left` and `right` in rows `top` and `bottom`."""
    total = tl.fma(top_weight * left_weight, tl.load(top + left, mask=mask, other=0.0).to(total.dtype), total)
    total = tl.fma(top_weight * right_weight, tl.load(top + right, mask=mask, other=0.0).to(total.dtype), total)
    total = tl.fma(bottom_weight * left_weight, tl.load(bottom + left, mask=mask, other=0.0).to(total.dtype), total)
    return tl.fma(bottom_weight * right_weight, tl.load(bottom + right, mask=mask, other=0.0).to(total.dtype), total)


# Kernels


@triton.jit(do_not_specialize=SIZES)
def crop_resize_forward_kernel(
    features, boxes, ptr, out, images, regions, channels, height, width, size,
    ACC_DTYPE: tl.constexpr, CLAMP: tl.constexpr, SAMPLES: tl.constexpr, CHUNKS: tl.constexpr, LANES: tl.constexpr,
):  # fmt: skip
    """A program makes one row of a patch."""
    region, row = (tl.program_id(0) // size).to(tl.int64), tl.program_id(0) % size
    channel = _channels(CHUNKS, LANES)[:, None, :]
    image, begin, end = _owner(region, ptr, images, regions)
    x1, y1, x2, y2 = _box(boxes, region, regions, ACC_DTYPE)
    spacing = _crop_spacing(x1, x2, size)
    y = _crop_position(y1, _crop_spacing(y1, y2, size), row, size, height, CLAMP)
    y_inside, top, bottom, top_weight, bottom_weight = _tap(y, height)
    samples = tl.where(y_inside & (begin <= region) & (region < end), size, 0)  # the others are 0
    stride = width.to(tl.int64) * channels
    source = features + image * height * stride + channel
    target = out + (region * size + row) * size * channels + channel
    for first in range(0, size, SAMPLES):
        column = first + tl.arange(0, SAMPLES)[None, :, None]
        x = _crop_position(x1, spacing, column, size, width, CLAMP)
        x_inside, left, right, left_weight, right_weight = _tap(x, width)
        mask = (column < size) & (channel < channels)
        total = _sampled(
            tl.zeros((CHUNKS, SAMPLES, LANES), ACC_DTYPE), source + top * stride, source + bottom * stride,
            left.to(tl.int64) * channels, right.to(tl.int64) * channels,
            top_weight, bottom_weight, left_weight, right_weight, mask & x_inside & (column < samples),
        )  # fmt: skip
        tl.store(target + column.to(tl.int64) * channels, rounded(total, out.dtype.element_ty), mask=mask)


@triton.jit(do_not_specialize=SIZES)
def crop_resize_backward_kernel(
    grad, boxes, ptr, out, images, regions, channels, height, width, size,
    ACC_DTYPE: tl.constexpr, CLAMP: tl.constexpr,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, CHUNKS: tl.constexpr, LANES: tl.constexpr,
):  # fmt: skip
    """A program makes a tile of a map, from the samples near its cells."""
    image, first_y, first_x = _tile(height, width, ROWS, COLUMNS)
    channel = _channels(CHUNKS, LANES)[:, None, None, :]
    y = first_y + tl.arange(0, ROWS)[None, :, None, None]
    x = first_x + tl.arange(0, COLUMNS)[None, None, :, None]
    y_border = (first_y == 0) | (first_y + ROWS >= height)
    x_border = (first_x == 0) | (first_x + COLUMNS >= width)
    stride = size.to(tl.int64) * channels
    begin, end = _owned(image, ptr, images, regions)
    total = tl.zeros((CHUNKS, ROWS, COLUMNS, LANES), ACC_DTYPE)
    for start in range(begin, end, BOXES):
        hits = _hits(boxes, start, end, first_y, first_x, height, width, 1, 1e-6, ROWS, COLUMNS, CLAMP)
        while hits != 0:
            bit, hits = _first_bit(hits)
            region = start + bit
            x1, y1, x2, y2 = _box(boxes, region, end, ACC_DTYPE)
            y_spacing, x_spacing = _crop_spacing(y1, y2, size), _crop_spacing(x1, x2, size)
            first_row, rows = _samples_near(y1, y_spacing, y, size, height, y_border, CLAMP)
            first_column, columns = _samples_near(x1, x_spacing, x, size, width, x_border, CLAMP)
            source = grad + region * size * stride + channel
            for i in range(rows):
                row = first_row + i
                line = source + row * stride
                y_weight = _weight(_crop_position(y1, y_spacing, row, size, height, CLAMP), y, height)
                y_weight = tl.where(row < size, y_weight, 0.0)
                part = tl.zeros((CHUNKS, ROWS, COLUMNS, LANES), ACC_DTYPE)
                for j in range(columns):
                    column = first_column + j
                    x_weight = _weight(_crop_position(x1, x_spacing, column, size, width, CLAMP), x, width)
                    x_weight = tl.where(column < size, x_weight, 0.0)
                    touched = (y_weight > 0) & (x_weight > 0) & (channel < channels)
                    value = tl.load(line + column.to(tl.int64) * channels, mask=touched, other=0.0).to(ACC_DTYPE)
                    part = tl.fma(x_weight, value, part)
                total = tl.fma(y_weight, part, total)
    target = out + ((image * height + y) * width + x) * channels + channel
    mask = (y < height) & (x < width) & (channel < channels)
    tl.store(target, rounded(total, out.dtype.element_ty), mask=mask)


@triton.jit(do_not_specialize=SIZES)
def paste_mean_forward_kernel(
    memory, patches, boxes, ptr, out, images, regions, channels, height, width, size,
    ACC_DTYPE: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr, CHUNKS: tl.constexpr, LANES: tl.constexpr,
):  # fmt: skip
    """A program makes a tile of a map."""
    image, first_y, first_x = _tile(height, width, ROWS, COLUMNS)
    channel = _channels(CHUNKS, LANES)[:, None, None, :]
    y = first_y + tl.arange(0, ROWS)[None, :, None, None]
    x = first_x + tl.arange(0, COLUMNS)[None, None, :, None]
    share = divide(tl.full((), TOLERANCE, tl.float32), (size - 1).to(tl.float32)) + 1e-6
    stride = size.to(tl.int64) * channels
    begin, end = _owned(image, ptr, images, regions)
    total = tl.zeros((CHUNKS, ROWS, COLUMNS, LANES), ACC_DTYPE)
    count = tl.zeros((1, ROWS, COLUMNS, 1), tl.int32)
    for start in range(begin, end, BOXES):
        hits = _hits(boxes, start, end, first_y, first_x, height, width, 0, share, ROWS, COLUMNS, False)
        while hits != 0:
            bit, hits = _first_bit(hits)
            region = start + bit
            x1, y1, x2, y2 = _box(boxes, region, end, ACC_DTYPE)
            y_inside, top, bottom, top_weight, bottom_weight = _tap(_paste_position(y1, y2, y, size), size)
            x_inside, left, right, left_weight, right_weight = _tap(_paste_position(x1, x2, x, size), size)
            covered = y_inside & x_inside
            count += covered.to(tl.int32)
            source = patches + region * size * stride + channel
            total = _sampled(
                total, source + top * stride, source + bottom * stride,
                left.to(tl.int64) * channels, right.to(tl.int64) * channels,
                top_weight, bottom_weight, left_weight, right_weight, covered & (channel < channels),
            )  # fmt: skip
    cell = ((image * height + y) * width + x) * channels + channel
    mask = (y < height) & (x < width) & (channel < channels)
    before = tl.load(memory + cell, mask=mask, other=0.0)
    after = before.to(ACC_DTYPE) + divide(total, tl.maximum(count, 1).to(ACC_DTYPE))
    # What nothing covers keeps its bits, -0.0 and all.
    tl.store(out + cell, tl.where(count > 0, rounded(after, out.dtype.element_ty), before), mask=mask)


@triton.jit(do_not_specialize=SIZES)
def paste_mean_backward_kernel(
    grad, boxes, ptr, out, images, regions, channels, height, width, size,
    ACC_DTYPE: tl.constexpr, SAMPLES: tl.constexpr, CHUNKS: tl.constexpr, LANES: tl.constexpr,
):  # fmt: skip
    """A program makes one row of a patch's gradient, from the cells near its samples.

    The weights of a block of cells, 16 rows by CELLS columns for every sample, are made at once, so that counting who
    covers a cell is a product, and then taken one cell a sample.
    """
    region, row = (tl.program_id(0) // size).to(tl.int64), tl.program_id(0) % size
    channel = _channels(CHUNKS, LANES)[:, None, :]
    image, begin, end = _owner(region, ptr, images, regions)
    x1, y1, x2, y2 = _box(boxes, region, regions, ACC_DTYPE)
    last = (size - 1).to(tl.float32)
    y_slope, x_slope = divide((y2 - y1).to(tl.float32), last), divide((x2 - x1).to(tl.float32), last)
    first_y, rows = _neighbours(row, y1.to(tl.float32), y_slope, size, height)
    rows = tl.where((begin <= region) & (region < end), rows, 0)
    stride = width.to(tl.int64) * channels
    source = grad + image * height * stride + channel
    target = out + (region * size + row) * size * channels + channel
    for first in range(0, size, SAMPLES):
        column = first + tl.arange(0, SAMPLES)[None, :, None]
        first_x, columns = _neighbours(column, x1.to(tl.float32), x_slope, size, width)
        total = tl.zeros((CHUNKS, SAMPLES, LANES), ACC_DTYPE)
        for left in range(0, columns, CELLS):
            sample = first + tl.arange(0, CELLS * SAMPLES) % SAMPLES
            x, _ = _neighbours(sample, x1.to(tl.float32), x_slope, size, width)
            x += left + tl.arange(0, CELLS * SAMPLES) // SAMPLES
            x_weight = _weight(_paste_position(x1, x2, x, size), sample, size)
            x_weight = tl.where((x < width) & (sample < size), x_weight, 0.0)
            for top in range(0, rows, 16):
                # Not grad / count, as in the reference: one division serves all channels.
                count = _coverage(boxes, begin, end, first_y + top + tl.arange(0, 16), x, size, ACC_DTYPE)
                weights = tl.reshape(divide(x_weight[None, :], count), (16 * CELLS * SAMPLES,))
                for i in range(top, tl.minimum(top + 16, rows)):
                    y = first_y + i
                    y_weight = _weight(_paste_position(y1, y2, y, size), row, size)
                    if (y < height) & (y_weight > 0):
                        part = tl.zeros((CHUNKS, SAMPLES, LANES), ACC_DTYPE)
                        for j in range(left, tl.minimum(left + CELLS, columns)):
                            index = ((i - top) * CELLS + j - left) * SAMPLES + tl.arange(0, SAMPLES)
                            weight = tl.gather(weights, index, 0)[None, :, None]
                            cell = source + y * stride + (first_x + j).to(tl.int64) * channels
                            value = tl.load(cell, mask=(weight > 0) & (channel < channels), other=0.0).to(ACC_DTYPE)
                            part = tl.fma(weight, value, part)
                        total = tl.fma(y_weight, part, total)
        mask = (column < size) & (channel < channels)
        tl.store(target + column.to(tl.int64) * channels, rounded(total, out.dtype.element_ty), mask=mask)


# Launchers, with the operators' own signatures


def crop_resize(features: Tensor, boxes: Tensor, ptr: Tensor, size: int, border: str) -> Tensor:
    images, channels, height, width = features.shape
    out = empty_map(features, (len(boxes), channels, size, size))
    shape = (images, len(boxes), channels, height, width, size)
    clamp = border == "clamp"
    _launch(crop_resize_forward_kernel, len(boxes) * size, [features], boxes, ptr, out, shape, CLAMP=clamp)
    return out


def crop_resize_backward(grad: Tensor, boxes: Tensor, ptr: Tensor, height: int, width: int, border: str) -> Tensor:
    images, channels, size = len(ptr) - 1, grad.shape[1], grad.shape[-1]
    out = empty_map(grad, (images, channels, height, width))
    shape = (images, len(boxes), channels, height, width, size)
    _launch(crop_resize_backward_kernel, _tiles(out), [grad], boxes, ptr, out, shape, CLAMP=border == "clamp")
    return out


def paste_mean(memory: Tensor, patches: Tensor, boxes: Tensor, ptr: Tensor) -> Tensor:
    images, channels, height, width = memory.shape
    out = empty_map(memory, memory.shape)
    shape = (images, len(boxes), channels, height, width, patches.shape[-1])
    _launch(paste_mean_forward_kernel, _tiles(out), [memory, patches], boxes, ptr, out, shape)
    return out


def paste_mean_backward(grad: Tensor, boxes: Tensor, ptr: Tensor, size: int) -> Tensor:
    images, channels, height, width = grad.shape
    out = empty_map(grad, (len(boxes), channels, size, size))
    shape = (images, len(boxes), channels, height, width, size)
    _launch(paste_mean_backward_kernel, len(boxes) * size, [grad], boxes, ptr, out, shape)
    return out


def _tiles(out: Tensor) -> int:
    images, _, height, width = out.shape
    tiles: int = images * triton.cdiv(height, ROWS) * triton.cdiv(width, COLUMNS)
    return tiles


def _launch(kernel, parts: int, inputs: list[Tensor], boxes: Tensor, ptr: Tensor, out: Tensor, shape, **flags) -> None:
    """Run a kernel on the current device for all parts of the output, each in as many programs as its channels take."""
    if not out.numel():
        return
    inputs = [t.contiguous(memory_format=torch.channels_last) for t in inputs]
    constants = _constants(kernel, out.dtype, out.shape[1]) | flags
    grid = (parts, triton.cdiv(out.shape[1], constants["CHUNKS"] * constants["LANES"]))
    kernel[grid](*inputs, boxes.contiguous(), ptr.contiguous(), out, *shape, **constants, **SCHEDULE, **OPTIONS)


def _constants(kernel, dtype: torch.dtype, channels: int) -> dict:
    """A kernel's compile-time arguments but its flags; a program has no more channels than there are."""
    acc = acc_type(dtype)
    four = kernel in (crop_resize_forward_kernel, paste_mean_forward_kernel)
    most = FOUR_CELLS // dtype.itemsize if four else ONE_CELL * 8 // acc.primitive_bitwidth
    channels = min(triton.next_power_of_2(channels), most)
    lanes = min(channels, ACCESS // dtype.itemsize)
    tile = {"ROWS": ROWS, "COLUMNS": COLUMNS, "SAMPLES": SAMPLES, "CHUNKS": channels // lanes, "LANES": lanes}
    return {"ACC_DTYPE": acc} | {name: value for name, value in tile.items() if name in kernel.arg_names}


def kernels(channels: int = 512) -> list[dict]:
    """Every kernel as it is launched in float32 and bfloat16: the fields of aot.compiled.TritonKernel."""
    shipped = []
    for dtype, maps in ((torch.float32, "*fp32"), (torch.bfloat16, "*bf16")):
        for kernel, flags in (
            (crop_resize_forward_kernel, {"CLAMP": False}),
            (crop_resize_forward_kernel, {"CLAMP": True}),
            (crop_resize_backward_kernel, {"CLAMP": False}),
            (crop_resize_backward_kernel, {"CLAMP": True}),
            (paste_mean_forward_kernel, {}),
            (paste_mean_backward_kernel, {}),
        ):
            constants = _constants(kernel, dtype, channels) | flags
            others = {"boxes": "*fp32", "ptr": "*i64"} | dict.fromkeys((*SIZES, "channels"), "i32")
            types = {name: others.get(name, maps) for name in kernel.arg_names if name not in constants}
            arguments = {"function": kernel, "types": types, "constexprs": constants, "multiples_of_16": ("channels",)}
            shipped.append(arguments | SCHEDULE | {"options": OPTIONS})
    return shipped
