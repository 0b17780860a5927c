"""segment_matmul and segment_outer in Triton, for GPUs where nobody compiled anything. Nothing of PyTorch's dispatcher
lives here: dispatch.py registers the launchers.

Matrix products of the images' rows in one launch: the host does not know how many rows an image has, so there are as
many programs as any `ptr` can need. There are no atomics. Sums go in an order that follows from the shapes and the rows
of the image alone. Whatever `ptr` holds, nothing outside the tensors is touched.

Operands are loaded 16 bytes at a time, so their rows have to begin at multiples of 16 bytes. Where they do not (in 16
bits a width that is no multiple of 8) the operand is copied to rows that do, with zeros at their ends: that takes its
bytes once more in memory until the product is made, and twice in traffic. Results have rows of their own width.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

# Absolute: this file also runs as a copy outside of its package.
from irnet_kernels.triton_shared import POINTERS, acc_type, dot, precision, rounded, split

# What is launched, by the bytes of the dtype; nothing is tuned at run time. Products of [M, K] and [K, N] blocks.
TILES = {
    2: {"BLOCK_M": 64, "BLOCK_N": 128, "BLOCK_K": 64, "num_warps": 4, "num_stages": 3},
    4: {"BLOCK_M": 64, "BLOCK_N": 64, "BLOCK_K": 16, "num_warps": 8, "num_stages": 3},
    8: {"BLOCK_M": 16, "BLOCK_N": 16, "BLOCK_K": 4, "num_warps": 8, "num_stages": 1},
}


@triton.jit
def _owned(image, ptr, images, rows):
    """The rows [begin, end) of an image, of those that there are."""
    begin, end = tl.load(ptr + image), tl.load(ptr + image + 1, mask=image < images, other=0)
    return tl.maximum(begin, 0), tl.minimum(end, rows)


@triton.jit
def _tile(program, ptr, images, rows, BLOCK: tl.constexpr):
    """A program's image, its first row, and the end of the image's rows; left-over programs begin at the end.

    Image b has the programs from ptr[b] // BLOCK + b on: one for every BLOCK rows and at most one too many.
    """
    low, high = images * 0, images
    while high - low > 1:
        middle = (low + high) // 2
        before = tl.load(ptr + middle) // BLOCK + middle <= program
        low = tl.where(before, middle, low)
        high = tl.where(before, high, middle)
    begin, end = _owned(low, ptr, images, rows)
    return low.to(tl.int64), tl.maximum(begin + (program - low - begin // BLOCK) * BLOCK, begin), end


@triton.jit
def _first(count, BLOCK: tl.constexpr):
    """Which of a block's rows are its first `count`. Compared in 32 bits: masks of 64 made ptxas spill in 16 bits."""
    return tl.arange(0, BLOCK) < tl.minimum(count, BLOCK).to(tl.int32)


@triton.jit
def _stride(width, pointer):
    """Elements from one row of an operand to the next: compilers see that rows begin at multiples of 16 bytes."""
    UNIT: tl.constexpr = 128 // pointer.dtype.element_ty.primitive_bitwidth
    return tl.cdiv(width, UNIT) * UNIT


@triton.jit(do_not_specialize=("rows", "width"))
def segment_align_kernel(x, out, rows, width, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr):
    """A program copies a tile of x [rows, width] to rows that begin at multiples of 16 bytes; zeros fill their ends."""
    stride = _stride(width, x)
    row = (tl.program_id(0).to(tl.int64) * BLOCK_M + tl.arange(0, BLOCK_M))[:, None]
    column = (tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N))[None, :]
    value = tl.load(x + row * width + column, mask=(row < rows) & (column < width), other=0.0)
    tl.store(out + row * stride + column, value, mask=(row < rows) & (column < stride))


@triton.jit(do_not_specialize=("images", "rows", "depth", "width"))
def segment_matmul_kernel(
    x, other, ptr, out, images, rows, depth, width,
    ACC_DTYPE: tl.constexpr, PRECISION: tl.constexpr, TRANSPOSED: tl.constexpr, ALIGNED: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """A program makes a tile of the result, of one image: x [rows, depth], other [images, depth, width], or
    [images, width, depth] in memory if TRANSPOSED. Programs that run at the same time share rows.

    Rows of x and other begin at multiples of 16 bytes, with zeros at their ends; if ALIGNED, those of out do, too.
    """
    deep, wide = _stride(depth, x), _stride(width, x)
    across = tl.cdiv(width, BLOCK_N)
    program = tl.program_id(0)
    image, first, end = _tile(program // across, ptr, images, rows, BLOCK_M)
    if first < end:
        row = first + tl.arange(0, BLOCK_M)
        owned = _first(end - first, BLOCK_M)
        column = program % across * BLOCK_N + tl.arange(0, BLOCK_N)
        inner = tl.arange(0, BLOCK_K)
        left = x + row[:, None] * deep + inner[None, :]
        right = other + (image * width * deep if TRANSPOSED else image * depth * wide)
        if TRANSPOSED:
            right += column.to(tl.int64)[None, :] * deep + inner[:, None]
        else:
            right += inner.to(tl.int64)[:, None] * wide + column[None, :]
        total = tl.zeros((BLOCK_M, BLOCK_N), ACC_DTYPE)
        for start in range(0, depth, BLOCK_K):
            k = start + inner
            a = tl.load(left + start, mask=owned[:, None] & (k < deep)[None, :], other=0.0)
            if TRANSPOSED:
                b = tl.load(right + start, mask=(k < deep)[:, None] & (column < width)[None, :], other=0.0)
            else:
                pointers = right + wide.to(tl.int64) * start
                b = tl.load(pointers, mask=(k < depth)[:, None] & (column < wide)[None, :], other=0.0)
            total = dot(a, b, total, PRECISION)
        out_width = wide if ALIGNED else width
        within = owned[:, None] & (column < out_width)[None, :]
        target = out + first * out_width + tl.arange(0, BLOCK_M).to(tl.int64)[:, None] * out_width + column[None, :]
        tl.store(target, rounded(total, out.dtype.element_ty), mask=within)


@triton.jit(do_not_specialize=("images", "rows", "height", "width"))
def segment_outer_kernel(
    x, y, ptr, out, images, rows, height, width,
    ACC_DTYPE: tl.constexpr, PRECISION: tl.constexpr, ALIGNED: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """A program makes a tile of one image's matrix from all rows of the image: x [rows, height], y [rows, width].

    Rows of x and y begin at multiples of 16 bytes; if ALIGNED, those of out do, too.
    """
    high, wide = _stride(height, x), _stride(width, x)
    across, down = tl.cdiv(width, BLOCK_N), tl.cdiv(height, BLOCK_M)
    program = tl.program_id(0)
    image = program // across // down
    begin, end = _owned(image, ptr, images, rows)
    top = program // across % down * BLOCK_M
    i = top + tl.arange(0, BLOCK_M)
    j = program % across * BLOCK_N + tl.arange(0, BLOCK_N)
    total = tl.zeros((BLOCK_M, BLOCK_N), ACC_DTYPE)
    for start in range(begin, end, BLOCK_K):
        row = start + tl.arange(0, BLOCK_K)
        owned = _first(end - start, BLOCK_K)
        a = tl.load(x + row[None, :] * high + i[:, None], mask=owned[None, :] & (i < high)[:, None], other=0.0)
        b = tl.load(y + row[:, None] * wide + j[None, :], mask=owned[:, None] & (j < wide)[None, :], other=0.0)
        total = dot(a, b, total, PRECISION)
    out_width = wide if ALIGNED else width
    first = image.to(tl.int64) * height + top
    target = out + first * out_width + tl.arange(0, BLOCK_M).to(tl.int64)[:, None] * out_width + j[None, :]
    within = (i < height)[:, None] & (j < out_width)[None, :]
    tl.store(target, rounded(total, out.dtype.element_ty), mask=within)


# Launchers, with the operators' own signatures


def segment_matmul(x: Tensor, other: Tensor, ptr: Tensor) -> Tensor:
    (rows, depth), (images, _, width) = x.shape, other.shape
    out = x.new_empty((rows, width))
    if out.numel():
        transposed = other.mT.is_contiguous()  # as a gradient calls this operator
        constants, options = _constants(x.dtype, None, width, depth)
        tiles = (rows // constants["BLOCK_M"] + images) * triton.cdiv(width, constants["BLOCK_N"])
        given = (_aligned(x), _aligned(other.mT if transposed else other), ptr.contiguous(), out)
        shape = (images, rows, depth, width)
        segment_matmul_kernel[(tiles,)](*given, *shape, **(constants | {"TRANSPOSED": transposed}), **options)
    return out


def segment_outer(x: Tensor, y: Tensor, ptr: Tensor) -> Tensor:
    (rows, height), width, images = x.shape, y.shape[1], len(ptr) - 1
    out = x.new_empty((images, height, width))
    if out.numel():
        constants, options = _constants(x.dtype, height, width, None)
        tiles = images * triton.cdiv(height, constants["BLOCK_M"]) * triton.cdiv(width, constants["BLOCK_N"])
        given = (_aligned(x), _aligned(y), ptr.contiguous(), out)
        segment_outer_kernel[(tiles,)](*given, images, rows, height, width, **constants, **options)
    return out


def _aligned(t: Tensor) -> Tensor:
    """The same rows, each beginning at a multiple of 16 bytes: `t` if it is so, else a copy."""
    unit, width, t = 16 // t.element_size(), t.shape[-1], t.contiguous()
    stride = triton.cdiv(width, unit) * unit
    if not t.numel() or (stride == width and t.storage_offset() % unit == 0):
        return t
    out, rows = t.new_empty((*t.shape[:-1], stride)), t.numel() // width
    constants = _align_constants(width)
    grid = (triton.cdiv(rows, constants["BLOCK_M"]), triton.cdiv(stride, constants["BLOCK_N"]))
    segment_align_kernel[grid](t, out, rows, width, **constants)
    return out


def _align_constants(width: int) -> dict[str, int]:
    """Tiles of 2,048 elements, as high as the rows are short; at least 16 wide, which is a row's least stride."""
    columns = min(max(triton.next_power_of_2(width), 16), 1024)
    return {"BLOCK_M": 2048 // columns, "BLOCK_N": columns}


def _constants(dtype: torch.dtype, m: int | None, n: int, k: int | None) -> tuple[dict, dict]:
    """A kernel's compile-time arguments but TRANSPOSED, and how it is compiled, for products of [m, k] and [k, n].

    Blocks are no larger than they need be; None is the number of rows, which changes from batch to batch.
    """
    constants, options = split(TILES[dtype.itemsize])
    if k is None:  # an image has few rows to sum: more blocks at a time hide more than a long pipeline
        options["num_stages"] = min(options["num_stages"], 2)
    for name, end in (("BLOCK_M", m), ("BLOCK_N", n), ("BLOCK_K", k)):
        if end is not None:
            constants[name] = min(constants[name], max(triton.next_power_of_2(end), 16))
    constants |= {"PRECISION": precision(dtype), "ACC_DTYPE": acc_type(dtype)}
    return constants | {"ALIGNED": n * dtype.itemsize % 16 == 0}, options


def kernels(channels: int = 512, dtypes: tuple[torch.dtype, ...] = (torch.float32, torch.bfloat16)) -> list[dict]:
    """Every kernel as it is launched for x of these dtypes: the fields of aot.compiled.TritonKernel.

    Rows begin at multiples of 16 bytes and do not; what is launched depends on no width beyond that and a block's.
    """
    shipped = []
    for dtype in dtypes:
        aligned, odd = -(-channels // 16) * 16, channels | 1
        launches: list[tuple] = [(segment_align_kernel, _align_constants(odd), {})]
        for width in (aligned, odd):
            constants, options = _constants(dtype, None, width, channels)
            for transposed in (False, True):
                launches.append((segment_matmul_kernel, constants | {"TRANSPOSED": transposed}, options))
            launches.append((segment_outer_kernel, *_constants(dtype, channels, width, None)))
        for kernel, constants, options in launches:
            numbers = dict.fromkeys(("images", "rows", "depth", "height", "width"), "i32")
            types = {n: ({"ptr": "*i64"} | numbers).get(n, POINTERS[dtype]) for n in kernel.arg_names}
            types = {name: type_ for name, type_ in types.items() if name not in constants}
            shipped.append({"function": kernel, "types": types, "constexprs": constants} | options)
    return shipped
