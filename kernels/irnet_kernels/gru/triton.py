"""conv_gru and its gradient in Triton, for GPUs where nobody compiled anything. Nothing of PyTorch's dispatcher lives
here: dispatch.py registers the launchers. What sizes of blocks are launched is in configurations.py.

Patches are [regions, size, size, channels] in memory. A program of a convolution makes one position of the patch for
BLOCK_M regions: a tap is then inside for all of them or for none, so taps outside are never computed, nothing needs a
mask but the ends of regions and channels, and a tile is as good to load as a plain matrix. A 3x3 convolution to one
channel, a narrow gate, is a product to nine columns and a shifted sum; backwards it is nine shifted columns times the
kernel. Intermediate values that are operands of a matrix product are rounded to the dtype, all others are float32.

There are no atomics. Sums go in an order that follows from the shapes and the configuration alone, and a patch's
results do not depend on how many others there are.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.tools.tensor_descriptor import TensorDescriptor

# Absolute: this file also runs as a copy outside of its package.
from irnet_kernels.gru.configurations import configuration
from irnet_kernels.numerics import empty_map, opmath_dtype
from irnet_kernels.triton_shared import acc_type, divide, dot, exp, precision, rounded, split

GATE_COLUMNS = tl.constexpr(32)  # of both narrow gates: 2 * 9, and zeros up to what a matrix product takes
SIZES = ("regions", "size")  # one kernel serves them all, also 1 and multiples of 16
MOST_OFFSET = 2**31 - 1  # within a tile; offsets of larger ones are 64 bits wide, which takes registers
# The kernel of narrow gates has a whole patch in one program, of this many cells at most. Narrow gates of larger
# patches are computed by the kernels of wide gates; so are those of float64, for which registers would not suffice.
MOST_CELLS = 256
PROGRAMS = 528  # that the weights' gradient is split into, if there are regions enough: four for each of an H100's 132
# multiprocessors. Each part costs a write and a read of the whole gradient in float32.
# The tiles of the matrices that the kernels multiply, by argument; where DESCRIPTORS is set, these come as descriptors.
OPERANDS = {
    **dict.fromkeys(("inputs", "state", "product", "pre_new", "gates"), ("BLOCK_M", "BLOCK_K")),
    **dict.fromkeys(("weight_x", "weight_h", "weight", "gate_weight"), ("BLOCK_N", "BLOCK_K")),
    "pre": ("BLOCK_K", "BLOCK_M"),
    "source": ("BLOCK_K", "BLOCK_N"),
}


# Parts that kernels share


@triton.jit
def _sigmoid(x):
    """0 and 1 where exp overflows and vanishes."""
    return divide(tl.full(x.shape, 1, x.dtype), 1 + exp(-x))


@triton.jit
def _load(pointers, inside, EVEN: tl.constexpr):
    """What is inside, which is all of it where blocks divide the channels, and zeros."""
    return tl.load(pointers) if EVEN else tl.load(pointers, mask=inside, other=0.0)


@triton.jit
def _tile(regions, outputs, size, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr):
    """A program's first region, its first output channel, and the row and column of its position in the patch.

    Positions with most taps come first: the inner ones, then the edges, then the corners. Programs that run at the same
    time share positions, and positions with the same taps read the weights in the same order.
    """
    across, down = tl.cdiv(outputs, BLOCK_N), tl.cdiv(regions, BLOCK_M)
    program = tl.program_id(0)
    position = program // across // down
    inner, last = tl.maximum(size - 2, 0), size - 1
    side = tl.maximum(inner, 1)  # not divided by 0 where there is no inner position
    on_edge = position - inner * inner
    corner = on_edge - 4 * inner
    edge, along = on_edge // side, 1 + on_edge % side
    y = tl.where(edge == 0, 0, tl.where(edge == 1, last, along))
    x = tl.where(edge == 2, 0, tl.where(edge == 3, last, along))
    y = tl.where(corner >= 0, corner // 2 * last, tl.where(on_edge >= 0, y, 1 + position // side))
    x = tl.where(corner >= 0, corner % 2 * last, tl.where(on_edge >= 0, x, 1 + position % side))
    return program // across % down * BLOCK_M, program % across * BLOCK_N, y, x


@triton.jit
def _convolved(
    total, source, weight, first, begin, y, x, regions, outputs, channels, size,
    BLOCK_K: tl.constexpr, EVEN: tl.constexpr, PRECISION: tl.constexpr,
    OFFSET: tl.constexpr, DESCRIPTORS: tl.constexpr,
):  # fmt: skip
    """total + the 3x3 convolution of `source` at one position, over the taps inside the patch.

    source  [regions, size, size, channels], of which the rows are the regions from `first` on
    weight  [outputs, 3, 3, channels], of which the columns are the outputs from `begin` on
    With DESCRIPTORS both are descriptors of matrices with all other axes in their columns: a tap is a tile of each,
    and rows beyond the last are zero. Else those repeat it.
    """
    # Where the dtype is the accumulator's own, the order of a sum shows: each convolution has one of its own, as in the
    # reference. In 16 bits it does not, and a second accumulator would cost a tile's worth of registers.
    OWN: tl.constexpr = source.dtype == total.dtype or source.dtype == tl.pointer_type(total.dtype)
    before = total
    if OWN:
        total = tl.zeros_like(before)
    top, left = tl.maximum(y - 1, 0), tl.maximum(x - 1, 0)
    right = tl.minimum(x + 1, size - 1)
    taps = (tl.minimum(y + 1, size - 1) - top + 1) * (right - left + 1)
    inner = tl.arange(0, BLOCK_K)
    if not DESCRIPTORS:
        row = tl.minimum(tl.arange(0, total.shape[0]), regions - 1 - first).to(OFFSET)
        column = tl.minimum(tl.arange(0, total.shape[1]), outputs - 1 - begin).to(OFFSET)
        sources = row[:, None] * (size * size * channels) + inner[None, :]
        weights = column[None, :] * (9 * channels) + inner[:, None]
        source += first.to(tl.int64) * (size * size) * channels
        weight += begin.to(tl.int64) * 9 * channels
    v, w, channel = top, left, 0
    for _ in range(taps * tl.cdiv(channels, BLOCK_K)):  # one loop, which Triton pipelines as a whole
        cell, tap = v * size + w, (v - y + 1) * 3 + w - x + 1
        if DESCRIPTORS:
            a = source.load([first, cell * channels + channel])
            b = weight.load([begin, tap * channels + channel]).T
        else:
            inside = inner < channels - channel
            a = _load(source + (cell * channels + channel) + sources, inside[None, :], EVEN)
            b = _load(weight + (tap * channels + channel) + weights, inside[:, None], EVEN)
        total = dot(a, b, total, PRECISION)
        # The next tile, without a division: channels first, then a row's taps.
        channel += BLOCK_K
        w = tl.where(channel < channels, w, w + 1)
        channel = tl.where(channel < channels, channel, 0)
        v = tl.where(w <= right, v, v + 1)
        w = tl.where(w <= right, w, left)
    return before + total if OWN else total


@triton.jit
def _parts(tile):
    """The columns of a tile in parts: what follows from one after the other, registers suffice for."""
    if tile.shape[1] > 128:
        left, right = _halves(tile)
        parts = _halves(left) + _halves(right)
    else:
        parts = (tile,)
    return parts


@triton.jit
def _halves(tile):
    """The left and the right half of a tile's columns."""
    return tl.split(tl.permute(tl.reshape(tile, (tile.shape[0], 2, tile.shape[1] // 2)), (0, 2, 1)))


@triton.jit
def _cells(row, y, x, size):
    """The indices of one position in patches that are rows of memory."""
    return row * (size * size) + y * size + x


@triton.jit
def _stored(first, begin, regions, outputs, y, x, size, SHAPE: tl.constexpr, OFFSET: tl.constexpr):
    """Where a tile of results lies in maps [regions, size, size, outputs]: the index of its first element, the offsets
    of all from that, and a mask of those that exist; and the same for maps of one channel."""
    row, column = tl.arange(0, SHAPE[0]), tl.arange(0, SHAPE[1])
    cell, valid = _cells(first.to(tl.int64), y, x, size), row < regions - first
    cells = row.to(OFFSET) * (size * size)
    offset, mask = cells[:, None] * outputs + column[None, :], valid[:, None] & (column < outputs - begin)[None, :]
    return cell * outputs + begin, offset, mask, cell, cells, valid


@triton.jit
def _with_gates(
    total, gates, weight, first, begin, y, x, regions, outputs, size,
    WIDE: tl.constexpr, BLOCK_K: tl.constexpr, EVEN: tl.constexpr, PRECISION: tl.constexpr,
    OFFSET: tl.constexpr, DESCRIPTORS: tl.constexpr,
):  # fmt: skip
    """total + what the gates' convolutions carry back.

    Wide gates: [regions, size, size, 2 * outputs] and rotated kernels, as in `_convolved`. Narrow gates: their shifted
    columns [regions, size, size, GATE_COLUMNS] and [outputs, GATE_COLUMNS].
    """
    if WIDE:
        total = _convolved(
            total, gates, weight, first, begin, y, x, regions, outputs, 2 * outputs, size,
            BLOCK_K, EVEN, PRECISION, OFFSET, DESCRIPTORS,
        )  # fmt: skip
    else:
        inner = tl.arange(0, GATE_COLUMNS)
        row = first.to(tl.int64) + tl.minimum(tl.arange(0, total.shape[0]), regions - 1 - first)
        column = begin + tl.minimum(tl.arange(0, total.shape[1]), outputs - 1 - begin)
        a = tl.load(gates + _cells(row, y, x, size)[:, None] * GATE_COLUMNS + inner[None, :])
        b = tl.load(weight + column[None, :] * GATE_COLUMNS + inner[:, None])
        total = dot(a, b, total, PRECISION)
    return total


# Forward


@triton.jit
def _gate_columns(
    total, source, weight, row, channels,
    BLOCK_K: tl.constexpr, EVEN: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """total + source [cells, channels] @ weight [GATE_COLUMNS, channels] transposed, of the cells `row`."""
    inner = tl.arange(0, BLOCK_K)
    for first in range(0, channels, BLOCK_K):
        inside = inner < channels - first
        a = _load(source + row[:, None] * channels + first + inner[None, :], inside[None, :], EVEN)
        column = tl.arange(0, GATE_COLUMNS)[None, :]
        b = _load(weight + column * channels + first + inner[:, None], inside[:, None], EVEN)
        total = dot(a, b, total, PRECISION)
    return total


@triton.jit(do_not_specialize=("size",))
def conv_gru_gates_forward_kernel(
    inputs, state, weight_x, weight_h, bias, reset, update, product, channels, size,
    ACC_DTYPE: tl.constexpr, PRECISION: tl.constexpr, EVEN: tl.constexpr,
    CELLS: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """Narrow gates: a program has a patch, and makes both gates and r.h."""
    cells = size * size
    patch = tl.program_id(0).to(tl.int64) * cells
    cell = tl.arange(0, CELLS)
    row = tl.minimum(cell, cells - 1)
    total = tl.zeros((CELLS, GATE_COLUMNS), ACC_DTYPE)
    total = _gate_columns(total, inputs + patch * channels, weight_x, row, channels, BLOCK_K, EVEN, PRECISION)
    total = _gate_columns(total, state + patch * channels, weight_h, row, channels, BLOCK_K, EVEN, PRECISION)

    gate, tap = tl.arange(0, GATE_COLUMNS) // 9, tl.arange(0, GATE_COLUMNS) % 9
    y, x = (cell // size)[:, None] + (tap // 3 - 1)[None, :], (cell % size)[:, None] + (tap % 3 - 1)[None, :]
    inside = (y >= 0) & (y < size) & (x >= 0) & (x < size)
    taps = tl.gather(total, tl.where(inside, y * size + x, 0), 0)
    valid = cell < cells
    r = _sigmoid(tl.sum(tl.where(inside & (gate == 0)[None, :], taps, 0.0), 1) + tl.load(bias).to(ACC_DTYPE))
    u = _sigmoid(tl.sum(tl.where(inside & (gate == 1)[None, :], taps, 0.0), 1) + tl.load(bias + 1).to(ACC_DTYPE))
    tl.store(reset + patch + cell, rounded(r, reset.dtype.element_ty), mask=valid)
    tl.store(update + patch + cell, u, mask=valid)
    for first in range(0, channels, BLOCK_K):
        column = first + tl.arange(0, BLOCK_K)
        offset = patch * channels + cell[:, None] * channels + column[None, :]
        mask = valid[:, None] & (column < channels)[None, :]
        value = r[:, None] * tl.load(state + offset, mask=mask, other=0.0).to(ACC_DTYPE)
        tl.store(product + offset, rounded(value, product.dtype.element_ty), mask=mask)


@triton.jit(do_not_specialize=SIZES)
def conv_gru_wide_gates_forward_kernel(
    inputs, state, weight_x, weight_h, bias, reset, update, regions, gate_channels, channels, size,
    ACC_DTYPE: tl.constexpr, PRECISION: tl.constexpr, EVEN: tl.constexpr,
    OFFSET: tl.constexpr, DESCRIPTORS: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """Both gates, of `gate_channels` each, whose kernels and biases are one after the other."""
    outputs = 2 * gate_channels
    first, begin, y, x = _tile(regions, outputs, size, BLOCK_M, BLOCK_N)
    total = tl.zeros((BLOCK_M, BLOCK_N), ACC_DTYPE)
    total = _convolved(
        total, inputs, weight_x, first, begin, y, x, regions, outputs, channels, size,
        BLOCK_K, EVEN, PRECISION, OFFSET, DESCRIPTORS,
    )  # fmt: skip
    total = _convolved(
        total, state, weight_h, first, begin, y, x, regions, outputs, channels, size,
        BLOCK_K, EVEN, PRECISION, OFFSET, DESCRIPTORS,
    )  # fmt: skip
    parts = _parts(total)
    for i in tl.static_range(len(parts)):
        _store_gates(parts[i], bias, reset, update, first, begin, y, x, regions, gate_channels, size, OFFSET)
        begin += parts[i].shape[1]


@triton.jit
def _store_gates(total, bias, reset, update, first, begin, y, x, regions, gate_channels, size, OFFSET: tl.constexpr):
    """Both gates from what the convolutions have summed, [regions, outputs] from `first` and `begin` on."""
    column = begin + tl.arange(0, total.shape[1])
    cell, _, _, _, cells, valid = _stored(first, begin, regions, gate_channels, y, x, size, total.shape, OFFSET)
    inside = column < 2 * gate_channels
    gate = _sigmoid(total + tl.load(bias + column, mask=inside, other=0.0).to(total.dtype)[None, :])
    offset = cells[:, None] * gate_channels + (column % gate_channels)[None, :]
    reset += cell - begin
    update += cell - begin
    tl.store(
        reset + offset, rounded(gate, reset.dtype.element_ty), mask=valid[:, None] & (column < gate_channels)[None, :]
    )
    tl.store(update + offset, gate, mask=valid[:, None] & (inside & (column >= gate_channels))[None, :])


@triton.jit(do_not_specialize=SIZES)
def conv_gru_forward_kernel(
    inputs, product, weight_x, weight_h, bias, before, update, new, out, regions, channels, size,
    ACC_DTYPE: tl.constexpr, PRECISION: tl.constexpr, EVEN: tl.constexpr, WIDE: tl.constexpr,
    OFFSET: tl.constexpr, DESCRIPTORS: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """n from x and r.h, which is `product`; and u.(n - h), where h is `before`."""
    first, begin, y, x = _tile(regions, channels, size, BLOCK_M, BLOCK_N)
    total = tl.zeros((BLOCK_M, BLOCK_N), ACC_DTYPE)
    total = _convolved(
        total, inputs, weight_x, first, begin, y, x, regions, channels, channels, size,
        BLOCK_K, EVEN, PRECISION, OFFSET, DESCRIPTORS,
    )  # fmt: skip
    total = _convolved(
        total, product, weight_h, first, begin, y, x, regions, channels, channels, size,
        BLOCK_K, EVEN, PRECISION, OFFSET, DESCRIPTORS,
    )  # fmt: skip
    parts = _parts(total)
    for i in tl.static_range(len(parts)):
        _store_change(
            parts[i], bias, before, update, new, out, first, begin, y, x, regions, channels, size, WIDE, OFFSET
        )
        begin += parts[i].shape[1]


@triton.jit
def _store_change(
    total, bias, before, update, new, out, first, begin, y, x, regions, channels, size,
    WIDE: tl.constexpr, OFFSET: tl.constexpr,
):  # fmt: skip
    """n and u.(n - h) from what the convolutions have summed, [regions, channels] from `first` and `begin` on."""
    base, offset, mask, cell, cells, valid = _stored(first, begin, regions, channels, y, x, size, total.shape, OFFSET)
    column = begin + tl.arange(0, total.shape[1])
    total += tl.load(bias + column, mask=column < channels, other=0.0).to(total.dtype)[None, :]
    n = tl.where(total <= 0, 0.0, total)  # a NaN stays one
    tl.store(new + base + offset, rounded(n, new.dtype.element_ty), mask=mask)
    h = tl.load(before + base + offset, mask=mask, other=0.0).to(total.dtype)
    if WIDE:
        u = tl.load(update + base + offset, mask=mask, other=0.0)
    else:
        u = tl.load(update + cell + cells, mask=valid, other=0.0)[:, None]
    tl.store(out + base + offset, rounded(u * (n - h), out.dtype.element_ty), mask=mask)


# Backward; a gradient before an activation is called `pre_`. `gates` [cells, 2 * (channels or 1)] has r's, then u's.


@triton.jit
def _rows(rows, BLOCK_M: tl.constexpr):
    """A program's rows of memory, one a cell, and a mask of those that exist."""
    row = tl.program_id(0).to(tl.int64) * BLOCK_M + tl.arange(0, BLOCK_M)
    return row, row < rows


@triton.jit(do_not_specialize=("rows",))
def conv_gru_update_backward_kernel(
    grad, state, new, update, pre_new, gates, new_sums, gate_sums, rows, channels,
    ACC_DTYPE: tl.constexpr, WIDE: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """pre_n = g.u.(n > 0) and pre_u = (the sum of) g.(n - h).u.(1 - u); and sums over a program's rows of
    pre_n and, for wide gates, pre_u."""
    row, valid = _rows(rows, BLOCK_M)
    total = tl.zeros((BLOCK_M,), ACC_DTYPE)
    for first in range(0, channels, BLOCK_K):
        column = first + tl.arange(0, BLOCK_K)
        offset, mask = row[:, None] * channels + column[None, :], valid[:, None] & (column < channels)[None, :]
        g = tl.load(grad + offset, mask=mask, other=0.0).to(ACC_DTYPE)
        n = tl.load(new + offset, mask=mask, other=0.0).to(ACC_DTYPE)
        h = tl.load(state + offset, mask=mask, other=0.0).to(ACC_DTYPE)
        if WIDE:
            u = tl.load(update + offset, mask=mask, other=0.0).to(ACC_DTYPE)
        else:
            u = tl.load(update + row, mask=valid, other=0.0).to(ACC_DTYPE)[:, None]
        pre = g * u * (n > 0).to(ACC_DTYPE)
        sums = tl.program_id(0).to(tl.int64) * channels + column
        tl.store(pre_new + offset, rounded(pre, pre_new.dtype.element_ty), mask=mask)
        tl.store(new_sums + sums, tl.sum(pre.to(new_sums.dtype.element_ty), 0), mask=column < channels)
        if WIDE:
            pre = g * (n - h) * u * (1 - u)
            tl.store(gates + offset + (row + 1)[:, None] * channels, rounded(pre, gates.dtype.element_ty), mask=mask)
            tl.store(gate_sums + sums, tl.sum(pre.to(gate_sums.dtype.element_ty), 0), mask=column < channels)
        else:
            total += tl.sum(g * (n - h), 1)
    if not WIDE:
        u = tl.load(update + row, mask=valid, other=0.0).to(ACC_DTYPE)
        tl.store(gates + 2 * row + 1, total * u * (1 - u), mask=valid)


@triton.jit(do_not_specialize=("rows",))
def conv_gru_reset_backward_kernel(
    state, d_product, reset, gates, gate_sums, rows, channels,
    ACC_DTYPE: tl.constexpr, WIDE: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """pre_r = (the sum of) d_rh.h.r.(1 - r), where d_rh is the gradient to r.h; for wide gates also its sums over
    a program's rows."""
    row, valid = _rows(rows, BLOCK_M)
    total = tl.zeros((BLOCK_M,), ACC_DTYPE)
    for first in range(0, channels, BLOCK_K):
        column = first + tl.arange(0, BLOCK_K)
        offset, mask = row[:, None] * channels + column[None, :], valid[:, None] & (column < channels)[None, :]
        d_reset = tl.load(d_product + offset, mask=mask, other=0.0)
        d_reset *= tl.load(state + offset, mask=mask, other=0.0).to(ACC_DTYPE)
        if WIDE:
            r = tl.load(reset + offset, mask=mask, other=0.0).to(ACC_DTYPE)
            pre = d_reset * r * (1 - r)
            sums = tl.program_id(0).to(tl.int64) * channels + column
            tl.store(gates + offset + row[:, None] * channels, rounded(pre, gates.dtype.element_ty), mask=mask)
            tl.store(gate_sums + sums, tl.sum(pre.to(gate_sums.dtype.element_ty), 0), mask=column < channels)
        else:
            total += tl.sum(d_reset, 1)
    if not WIDE:
        r = tl.load(reset + row, mask=valid, other=0.0).to(ACC_DTYPE)
        tl.store(gates + 2 * row, total * r * (1 - r), mask=valid)


@triton.jit(do_not_specialize=SIZES)
def conv_gru_product_backward_kernel(
    pre_new, weight, d_product, regions, channels, size,
    ACC_DTYPE: tl.constexpr, PRECISION: tl.constexpr, EVEN: tl.constexpr,
    OFFSET: tl.constexpr, DESCRIPTORS: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """d_rh: pre_n convolved with the rotated kernel. It is not rounded, as what follows from it is."""
    first, begin, y, x = _tile(regions, channels, size, BLOCK_M, BLOCK_N)
    total = _convolved(
        tl.zeros((BLOCK_M, BLOCK_N), ACC_DTYPE),
        pre_new, weight, first, begin, y, x, regions, channels, channels, size,
        BLOCK_K, EVEN, PRECISION, OFFSET, DESCRIPTORS,
    )  # fmt: skip
    base, offset, mask, _, _, _ = _stored(first, begin, regions, channels, y, x, size, total.shape, OFFSET)
    tl.store(d_product + base + offset, total, mask=mask)


@triton.jit(do_not_specialize=SIZES)
def conv_gru_inputs_backward_kernel(
    pre_new, weight, gates, gate_weight, d_inputs, regions, channels, size,
    ACC_DTYPE: tl.constexpr, PRECISION: tl.constexpr, EVEN: tl.constexpr, WIDE: tl.constexpr,
    OFFSET: tl.constexpr, DESCRIPTORS: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """d_x: what pre_n and the gates carry back through rotated kernels."""
    first, begin, y, x = _tile(regions, channels, size, BLOCK_M, BLOCK_N)
    total = tl.zeros((BLOCK_M, BLOCK_N), ACC_DTYPE)
    total = _convolved(
        total, pre_new, weight, first, begin, y, x, regions, channels, channels, size,
        BLOCK_K, EVEN, PRECISION, OFFSET, DESCRIPTORS,
    )  # fmt: skip
    total = _with_gates(
        total, gates, gate_weight, first, begin, y, x, regions, channels, size,
        WIDE, BLOCK_K, EVEN, PRECISION, OFFSET, DESCRIPTORS,
    )  # fmt: skip
    base, offset, mask, _, _, _ = _stored(first, begin, regions, channels, y, x, size, total.shape, OFFSET)
    tl.store(d_inputs + base + offset, rounded(total, d_inputs.dtype.element_ty), mask=mask)


@triton.jit(do_not_specialize=SIZES)
def conv_gru_state_backward_kernel(
    gates, gate_weight, grad, d_product, reset, update, d_state, regions, channels, size,
    ACC_DTYPE: tl.constexpr, PRECISION: tl.constexpr, EVEN: tl.constexpr, WIDE: tl.constexpr,
    OFFSET: tl.constexpr, DESCRIPTORS: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """d_h = d_rh.r - g.u, and what the gates carry back through rotated kernels."""
    first, begin, y, x = _tile(regions, channels, size, BLOCK_M, BLOCK_N)
    total = _with_gates(
        tl.zeros((BLOCK_M, BLOCK_N), ACC_DTYPE),
        gates, gate_weight, first, begin, y, x, regions, channels, size,
        WIDE, BLOCK_K, EVEN, PRECISION, OFFSET, DESCRIPTORS,
    )  # fmt: skip
    parts = _parts(total)
    for i in tl.static_range(len(parts)):
        _store_state(
            parts[i], grad, d_product, reset, update, d_state, first, begin, y, x, regions, channels, size, WIDE, OFFSET
        )
        begin += parts[i].shape[1]


@triton.jit
def _store_state(
    total, grad, d_product, reset, update, d_state, first, begin, y, x, regions, channels, size,
    WIDE: tl.constexpr, OFFSET: tl.constexpr,
):  # fmt: skip
    """d_h from what the gates carry back, [regions, channels] from `first` and `begin` on."""
    base, offset, mask, cell, cells, valid = _stored(first, begin, regions, channels, y, x, size, total.shape, OFFSET)
    if WIDE:
        r = tl.load(reset + base + offset, mask=mask, other=0.0).to(total.dtype)
        u = tl.load(update + base + offset, mask=mask, other=0.0).to(total.dtype)
    else:
        r = tl.load(reset + cell + cells, mask=valid, other=0.0).to(total.dtype)[:, None]
        u = tl.load(update + cell + cells, mask=valid, other=0.0).to(total.dtype)[:, None]
    total += tl.load(d_product + base + offset, mask=mask, other=0.0) * r
    total -= tl.load(grad + base + offset, mask=mask, other=0.0).to(total.dtype) * u
    tl.store(d_state + base + offset, rounded(total, d_state.dtype.element_ty), mask=mask)


@triton.jit(do_not_specialize=(*SIZES, "length"))
def conv_gru_weight_backward_kernel(
    pre, source, parts, regions, length, outputs, channels, size,
    ACC_DTYPE: tl.constexpr, PRECISION: tl.constexpr, TAPS: tl.constexpr,
    OFFSET: tl.constexpr, DESCRIPTORS: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """The gradient of a kernel, [parts, TAPS, outputs, channels]: of one tap, from `length` regions a part.

    TAPS is 9, or 1 for the tap in the middle alone. Programs of one part run at the same time, read the same regions.
    """
    across, down = tl.cdiv(channels, BLOCK_N), tl.cdiv(outputs, BLOCK_M)
    program, part = tl.program_id(0), tl.program_id(1)
    first_row, first_column = program // across % down * BLOCK_M, program % across * BLOCK_N
    which = program // across // down
    tap = which + (0 if TAPS == 9 else 4)
    dy, dx = tap // 3 - 1, tap % 3 - 1
    top, left = tl.maximum(-dy, 0), tl.maximum(-dx, 0)
    # The positions whose neighbour is inside.
    bottom, right = top + size - tl.abs(dy), left + size - tl.abs(dx)
    positions = (bottom - top) * (right - left)
    row, column, inner = first_row + tl.arange(0, BLOCK_M), first_column + tl.arange(0, BLOCK_N), tl.arange(0, BLOCK_K)
    if not DESCRIPTORS:
        regions_apart = inner.to(OFFSET) * (size * size)
        # Channels beyond the last one wrap around to the first ones, so that all addresses are inside and no mask is
        # needed; what is computed for them is not stored.
        pres = regions_apart[None, :] * outputs + (row % outputs)[:, None]
        sources = regions_apart[:, None] * channels + (column % channels)[None, :]
    total = tl.zeros((BLOCK_M, BLOCK_N), ACC_DTYPE)
    y, x, region = top, left, part * length
    for _ in range(positions * (length // BLOCK_K)):
        if DESCRIPTORS:
            a = pre.load([region, (y * size + x) * outputs + first_row]).T
            b = source.load([region, ((y + dy) * size + x + dx) * channels + first_column])
        else:
            valid, cell = inner < regions - region, _cells(region.to(tl.int64), y, x, size)
            a = tl.load(pre + cell * outputs + pres, mask=valid[None, :], other=0.0)
            b = tl.load(source + (cell + dy * size + dx) * channels + sources, mask=valid[:, None], other=0.0)
        total = dot(a, b, total, PRECISION)
        x += 1
        y = tl.where(x < right, y, y + 1)
        x = tl.where(x < right, x, left)
        region = tl.where(y < bottom, region, region + BLOCK_K)
        y = tl.where(y < bottom, y, top)
    parts += ((part.to(tl.int64) * TAPS + which) * outputs + first_row) * channels + first_column
    tiles = _parts(total)
    for i in tl.static_range(len(tiles)):
        column = i * tiles[i].shape[1] + tl.arange(0, tiles[i].shape[1])
        mask = (row < outputs)[:, None] & (column < channels - first_column)[None, :]
        tl.store(parts + (row - first_row).to(OFFSET)[:, None] * channels + column[None, :], tiles[i], mask=mask)


# Launchers, with the operators' own signatures


def conv_gru(inputs: Tensor, state: Tensor, weights: list[Tensor]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    new_x, new_h, reset_x, reset_h, update_x, update_h, new_bias, reset_bias, update_bias = weights
    regions, channels, size, _ = inputs.shape
    gates = len(reset_bias)
    inputs, state = _packed(inputs), _packed(state)
    out, new, product = (empty_map(inputs, inputs.shape) for _ in range(3))
    # Rounded in what is returned only.
    reset, update = (empty_map(inputs, (regions, gates, size, size), opmath_dtype(inputs.dtype)) for _ in range(2))
    if inputs.numel():
        gate_x, gate_h = torch.cat([reset_x, update_x]), torch.cat([reset_h, update_h])
        bias, shape = torch.cat([reset_bias, update_bias]), {"regions": regions, "channels": channels, "size": size}
        if gates == 1 and size * size <= MOST_CELLS and inputs.dtype != torch.float64:
            gate_x, gate_h = _columns(gate_x), _columns(gate_h)
            arguments: tuple[Tensor, ...] = (inputs, state, gate_x, gate_h, bias, reset, update, product)
            _launch(conv_gru_gates_forward_kernel, arguments, **shape)
        else:
            arguments = (inputs, state, _packed(gate_x), _packed(gate_h), bias, reset, update)
            _launch(conv_gru_wide_gates_forward_kernel, arguments, outputs=2 * gates, gate_channels=gates, **shape)
            torch.mul(reset, state, out=product)
        arguments = (inputs, product, _packed(new_x), _packed(new_h), new_bias.contiguous(), state, update, new, out)
        _launch(conv_gru_forward_kernel, arguments, WIDE=gates > 1, **shape)
    return out, new, reset.to(inputs.dtype), update.to(inputs.dtype)


def conv_gru_backward(
    grad: Tensor, inputs: Tensor, state: Tensor, weights: list[Tensor], new: Tensor, reset: Tensor, update: Tensor
) -> tuple[Tensor, Tensor, list[Tensor]]:
    new_x, new_h, reset_x, reset_h, update_x, update_h, *_ = weights
    regions, channels, size, _ = inputs.shape
    gates, acc_dtype = reset.shape[1], opmath_dtype(inputs.dtype)
    d_inputs, d_state = empty_map(inputs, inputs.shape), empty_map(inputs, inputs.shape)
    if not inputs.numel():
        return d_inputs, d_state, [torch.zeros_like(w) for w in weights]
    shape: dict = {"regions": regions, "channels": channels, "size": size, "WIDE": gates > 1}
    grad, inputs, state, new, reset, update = map(_packed, (grad, inputs, state, new, reset, update))

    pre_new, d_product = empty_map(inputs, inputs.shape), empty_map(inputs, inputs.shape, acc_dtype)
    pre = empty_map(inputs, (regions, 2 * gates, size, size), acc_dtype if gates == 1 else inputs.dtype)
    new_sums, update_sums = _launch_rows(
        conv_gru_update_backward_kernel, (grad, state, new, update, pre_new, pre), sums=2, **shape
    )
    _launch(conv_gru_product_backward_kernel, (pre_new, _rotated(new_h), d_product), **shape)
    (reset_sums,) = _launch_rows(conv_gru_reset_backward_kernel, (state, d_product, reset, pre), sums=1, **shape)

    gate_x, gate_h = torch.cat([reset_x, update_x]), torch.cat([reset_h, update_h])
    if gates > 1:
        gate_x, gate_h = _rotated(gate_x), _rotated(gate_h)
    else:
        reset_sums, update_sums = pre.sum((0, 2, 3), dtype=torch.float64).split(1)
        pre = _shifted(pre, inputs.dtype)
        gate_x, gate_h = (_columns(w.flip(2, 3)).mT.contiguous() for w in (gate_x, gate_h))
    _launch(conv_gru_inputs_backward_kernel, (pre_new, _rotated(new_x), pre, gate_x, d_inputs), **shape)
    _launch(conv_gru_state_backward_kernel, (pre, gate_h, grad, d_product, reset, update, d_state), **shape)

    product = torch.mul(reset, state, out=empty_map(inputs, inputs.shape))
    d_new_x, d_new_h = _weight_gradient(pre_new, inputs), _weight_gradient(pre_new, product)
    gate_gradient = _weight_gradient if gates > 1 else _column_gradient
    d_reset_x, d_update_x = gate_gradient(pre, inputs).chunk(2)
    d_reset_h, d_update_h = gate_gradient(pre, state).chunk(2)
    kernels = (d_new_x, d_new_h, d_reset_x, d_reset_h, d_update_x, d_update_h)
    gradients = (*kernels, new_sums, reset_sums, update_sums)
    return d_inputs, d_state, [torch.empty_like(w).copy_(d) for d, w in zip(gradients, weights, strict=True)]


def _packed(t: Tensor) -> Tensor:
    """With its channels next to each other; a kernel as [outputs, 3, 3, channels]."""
    return t.contiguous(memory_format=torch.channels_last)


def _rotated(weight: Tensor) -> Tensor:
    """The kernel by which a convolution's gradient comes back: [channels, 3, 3, outputs] in memory."""
    return _packed(weight.transpose(0, 1).flip(2, 3))


def _columns(weight: Tensor) -> Tensor:
    """Kernels of both narrow gates as [GATE_COLUMNS, channels]: a row for every tap."""
    rows = weight.permute(0, 2, 3, 1).flatten(0, 2)
    return torch.nn.functional.pad(rows, (0, 0, 0, GATE_COLUMNS.value - len(rows)))


def _shifted(gates: Tensor, dtype: torch.dtype) -> Tensor:
    """What the rotated taps of both narrow gates see: [regions, GATE_COLUMNS, size, size]."""
    regions, _, size, _ = gates.shape
    windows = torch.nn.functional.pad(gates, (1, 1, 1, 1)).unfold(2, 3, 1).unfold(3, 3, 1)
    columns = gates.new_zeros((regions, size, size, GATE_COLUMNS.value), dtype=dtype)
    columns[..., :18].unflatten(-1, (2, 3, 3)).copy_(windows.permute(0, 2, 3, 1, 4, 5))
    return columns.permute(0, 3, 1, 2)


def _weight_gradient(pre: Tensor, source: Tensor, taps: int = 9) -> Tensor:
    """[outputs, channels, 3, 3], not rounded; [outputs, channels] for the tap in the middle alone."""
    regions, outputs, size, _ = pre.shape
    kernel, channels = conv_gru_weight_backward_kernel, source.shape[1]
    like = source.dtype, source.device
    constants, options = _constants(kernel, like, outputs, channels, size, TAPS=taps)
    tiles = taps * triton.cdiv(outputs, constants["BLOCK_M"]) * triton.cdiv(channels, constants["BLOCK_N"])
    block = constants["BLOCK_K"]
    length = triton.cdiv(triton.cdiv(regions, max(PROGRAMS // tiles, 1)), block) * block
    count = triton.cdiv(regions, length)
    parts = source.new_empty((count, taps, outputs, channels), dtype=opmath_dtype(source.dtype))
    tensors = _described(kernel, (pre, source, parts), constants)
    kernel[tiles, count](*tensors, regions, length, outputs, channels, size, **constants, **options)
    total = parts.sum(0)
    return total.view(3, 3, outputs, channels).permute(2, 3, 0, 1) if taps == 9 else total[0]


def _column_gradient(columns: Tensor, source: Tensor) -> Tensor:
    """Of both narrow gates' kernels: [2, channels, 3, 3]."""
    gradient = _weight_gradient(columns, source, taps=1)[:18]
    return gradient.view(2, 3, 3, source.shape[1]).flip(1, 2).permute(0, 3, 1, 2)


def _launch(kernel, tensors, *, regions: int, channels: int, size: int, outputs: int = 0, **others) -> None:
    """Run a kernel on the current device: a program for every patch, or for every tile of every position."""
    outputs, like = outputs or channels, (tensors[0].dtype, tensors[0].device)
    constants, options = _constants(kernel, like, outputs, channels, size, **others)
    numbers = {"regions": regions, "channels": channels, "size": size} | others
    programs = regions
    if "CELLS" not in constants:
        tiles = triton.cdiv(regions, constants["BLOCK_M"]) * triton.cdiv(outputs, constants["BLOCK_N"])
        programs = size * size * tiles
    numbers = {name: value for name, value in numbers.items() if name in kernel.arg_names}
    tensors = _described(kernel, tensors, constants)
    kernel[(programs,)](*tensors, **(numbers | constants), **options)


def _launch_rows(kernel, tensors, *, sums: int, regions: int, channels: int, size: int, WIDE: bool) -> list[Tensor]:
    """Run a kernel whose programs have some rows of memory each. Sums per channel of what it computes, in order.

    Of 16 bits a program adds its rows in float32; of float32 in float64, as a bias is the small rest of large terms.
    """
    like, rows = (tensors[0].dtype, tensors[0].device), regions * size * size
    dtype = torch.float32 if like[0].itemsize == 2 else torch.float64
    constants, options = _constants(kernel, like, channels, channels, WIDE=WIDE)
    programs = triton.cdiv(rows, constants["BLOCK_M"])
    # The last ones are those of wide gates.
    sizes = [programs] * (sums if WIDE else sums - 1) + [0] * (not WIDE)
    parts = [tensors[0].new_empty((count, channels), dtype=dtype) for count in sizes]
    kernel[(programs,)](*tensors, *parts, rows=rows, channels=channels, **constants, **options)
    return [part.sum(0, dtype=torch.float64) for part in parts]


def _constants(kernel, like: tuple, outputs: int, channels: int, size: int = 1, **flags) -> tuple[dict, dict]:
    """A kernel's compile-time arguments, and how it is compiled; blocks are no larger than they need be.

    like      dtype and device of the maps
    outputs   columns of the kernel's matrix product; rows for the gradient of weights
    channels  what its product sums over; columns for the gradient of weights
    """
    dtype, device = like
    wide = "WIDE" in kernel.arg_names and flags["WIDE"]
    sizes, options = split(configuration(kernel.__name__ + " wide" * wide, dtype, device))
    summed, columns = (max(triton.next_power_of_2(n), 16) for n in (channels, outputs))
    ends = {"BLOCK_M": columns, "BLOCK_N": summed} if kernel is conv_gru_weight_backward_kernel else {}
    ends = ends or {"BLOCK_N": columns, "BLOCK_K": summed}
    constants = {name: min(end, ends.get(name, end)) for name, end in sizes.items()}
    even = channels % constants.get("BLOCK_K", 1) == 0
    # Rows of a descriptor are multiples of 16 bytes. What a tile reads beyond the channels of a position is not zero:
    # where that would be summed, blocks have to divide them.
    rows_fit = outputs % 8 == channels % 8 == 0 if kernel is conv_gru_weight_backward_kernel else even
    # What a tile spans, in the largest of maps and kernels: both gates' [regions, size, size, 2 * channels].
    span = max(sizes.values()) * max(size * size, 9) * 2 * max(channels, outputs)
    constants |= flags | {
        "ACC_DTYPE": acc_type(dtype),
        "PRECISION": precision(dtype),
        "EVEN": even,
        "OFFSET": tl.int32 if span <= MOST_OFFSET else tl.int64,
        "DESCRIPTORS": bool(constants.get("DESCRIPTORS") and rows_fit and dtype.itemsize == 2),
        "CELLS": max(triton.next_power_of_2(size * size), 16),
    }
    return {name: value for name, value in constants.items() if name in kernel.arg_names}, options


def _described(kernel, tensors, constants: dict) -> list:
    """A kernel's tensors, matrices that it multiplies as descriptors where `constants` say so: rows are regions or
    outputs, columns all that is next to each other in memory.

    DESCRIPTORS is unset in `constants` where a tensor does not begin at a multiple of 16 bytes, as a view may.
    """
    named = dict(zip(kernel.arg_names, tensors, strict=False))
    operands = _operands(named, constants)
    if any(named[name].data_ptr() % 16 for name in operands):
        constants["DESCRIPTORS"] = False
        return list(tensors)
    for name, block in operands.items():
        rows, columns = named[name].shape[0], named[name][0].numel()
        named[name] = TensorDescriptor(named[name], [rows, columns], [columns, 1], block)
    return list(named.values())


def _operands(names, constants: dict) -> dict[str, list[int]]:
    """Which arguments of these a kernel takes as descriptors, and their tiles."""
    narrow = () if constants.get("WIDE", True) else ("gates", "gate_weight")
    tiles = {name: tile for name, tile in OPERANDS.items() if name in names and name not in narrow}
    return (
        {name: [constants[end] for end in tile] for name, tile in tiles.items()} if constants.get("DESCRIPTORS") else {}
    )


def kernels(channels: int = 512) -> list[dict]:
    """Every kernel as it is launched in float32 and bfloat16 for patches of 7 x 7: the fields of TritonKernel."""
    narrow, wide = {"WIDE": False}, {"WIDE": True}
    sizes = ("regions", "channels", "size", "rows", "length", "outputs", "gate_channels")
    shipped = []
    for dtype, maps in ((torch.float32, "*fp32"), (torch.bfloat16, "*bf16")):
        for kernel, flags, outputs in (
            (conv_gru_gates_forward_kernel, {}, channels),
            (conv_gru_wide_gates_forward_kernel, {}, 2 * channels),
            (conv_gru_forward_kernel, narrow, channels),
            (conv_gru_forward_kernel, wide, channels),
            (conv_gru_update_backward_kernel, narrow, channels),
            (conv_gru_update_backward_kernel, wide, channels),
            (conv_gru_product_backward_kernel, {}, channels),
            (conv_gru_reset_backward_kernel, narrow, channels),
            (conv_gru_reset_backward_kernel, wide, channels),
            (conv_gru_inputs_backward_kernel, narrow, channels),
            (conv_gru_inputs_backward_kernel, wide, channels),
            (conv_gru_state_backward_kernel, narrow, channels),
            (conv_gru_state_backward_kernel, wide, channels),
            (conv_gru_weight_backward_kernel, {"TAPS": 9}, channels),
            (conv_gru_weight_backward_kernel, {"TAPS": 1}, GATE_COLUMNS.value),
        ):
            constants, options = _constants(kernel, (dtype, torch.device("cpu")), outputs, channels, 7, **flags)
            others = dict.fromkeys(sizes, "i32") | dict.fromkeys(("d_product", "parts"), "*fp32")
            others |= dict.fromkeys(("new_sums", "gate_sums"), "*fp32" if dtype.itemsize == 2 else "*fp64")
            if "forward" in kernel.__name__:
                others |= {"reset": "*fp32", "update": "*fp32"}
            if "rows" in kernel.arg_names and flags is narrow:
                others["gates"] = "*fp32"
            types = {name: others.get(name, maps) for name in kernel.arg_names if name not in constants}
            for name, tile in _operands(types, constants).items():
                types[name] = f"tensordesc<{maps[1:]}{tile}>"
            multiples = tuple(name for name in ("channels", "outputs", "gate_channels") if name in types)
            arguments = {"function": kernel, "types": types, "constexprs": constants, "multiples_of_16": multiples}
            shipped.append(arguments | options)
    return shipped
