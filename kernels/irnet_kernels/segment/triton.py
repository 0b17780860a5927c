"""segment_matmul and segment_outer in Triton, for GPUs where nobody compiled anything. Nothing of PyTorch's dispatcher
lives here: library.py registers the launchers.

Matrix products of the images' rows in one launch: the host does not know how many rows an image has, so there are as
many programs as any `ptr` can need. There are no atomics. Sums go in an order that follows from the shapes and the rows
of the image alone. Whatever `ptr` holds, nothing outside the tensors is touched.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

TRITON_NAMES = {torch.float64: "*fp64", torch.float32: "*fp32", torch.bfloat16: "*bf16"}
INTERPRETED = tl.constexpr(bool(triton.knobs.runtime.interpret))

# What is launched, by the bytes of the dtype; nothing is tuned at run time. Products of [M, K] and [K, N] blocks.
TILES = {
    2: {"BLOCK_M": 64, "BLOCK_N": 128, "BLOCK_K": 64, "num_warps": 4, "num_stages": 3},
    4: {"BLOCK_M": 64, "BLOCK_N": 64, "BLOCK_K": 16, "num_warps": 8, "num_stages": 3},
    8: {"BLOCK_M": 16, "BLOCK_N": 16, "BLOCK_K": 4, "num_warps": 4, "num_stages": 1},
}


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


@triton.jit
def _dot(a, b, total, PRECISION: tl.constexpr):
    """total + a @ b. Not every GPU multiplies matrices of float64; Triton's interpreter takes bfloat16 for integers."""
    if total.dtype == tl.float64:
        total += tl.sum(a[:, :, None] * b[None, :, :], 1)
    elif INTERPRETED:
        total = tl.dot(a.to(tl.float32), b.to(tl.float32), total)
    else:
        total = tl.dot(a, b, total, input_precision=PRECISION)
    return total


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


@triton.jit(do_not_specialize=("images", "rows"))
def segment_matmul_kernel(
    x, other, ptr, out, images, rows, depth, width,
    REAL: tl.constexpr, PRECISION: tl.constexpr, TURNED: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """A program makes a tile of the result, of one image: x [rows, depth], other [images, depth, width], or
    [images, width, depth] in memory if TURNED. Programs that run at the same time share rows."""
    across = tl.cdiv(width, BLOCK_N)
    program = tl.program_id(0)
    image, first, end = _tile(program // across, ptr, images, rows, BLOCK_M)
    if first < end:
        row = first + tl.arange(0, BLOCK_M)
        column = program % across * BLOCK_N + tl.arange(0, BLOCK_N)
        inner = tl.arange(0, BLOCK_K)
        matrix = other + image * depth * width
        total = tl.zeros((BLOCK_M, BLOCK_N), REAL)
        for start in range(0, depth, BLOCK_K):
            k = start + inner
            there = (row < end)[:, None] & (k < depth)[None, :]
            a = tl.load(x + row[:, None] * depth + k[None, :], mask=there, other=0.0)
            there = (k < depth)[:, None] & (column < width)[None, :]
            if TURNED:
                at = column.to(tl.int64)[None, :] * depth + k[:, None]
            else:
                at = k.to(tl.int64)[:, None] * width + column[None, :]
            total = _dot(a, tl.load(matrix + at, mask=there, other=0.0), total, PRECISION)
        wanted = (row < end)[:, None] & (column < width)[None, :]
        tl.store(out + row[:, None] * width + column[None, :], _rounded(total, out.dtype.element_ty), mask=wanted)


@triton.jit(do_not_specialize=("images", "rows"))
def segment_outer_kernel(
    x, y, ptr, out, images, rows, height, width,
    REAL: tl.constexpr, PRECISION: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """A program makes a tile of one image's matrix from all rows of the image: x [rows, height], y [rows, width]."""
    across, down = tl.cdiv(width, BLOCK_N), tl.cdiv(height, BLOCK_M)
    program = tl.program_id(0)
    image = program // across // down
    begin, end = _owned(image, ptr, images, rows)
    i = program // across % down * BLOCK_M + tl.arange(0, BLOCK_M)
    j = program % across * BLOCK_N + tl.arange(0, BLOCK_N)
    total = tl.zeros((BLOCK_M, BLOCK_N), REAL)
    for start in range(begin, end, BLOCK_K):
        row = start + tl.arange(0, BLOCK_K)
        a = tl.load(
            x + row[None, :] * height + i[:, None], mask=(row < end)[None, :] & (i < height)[:, None], other=0.0
        )
        b = tl.load(y + row[:, None] * width + j[None, :], mask=(row < end)[:, None] & (j < width)[None, :], other=0.0)
        total = _dot(a, b, total, PRECISION)
    target = out + (image.to(tl.int64) * height + i[:, None]) * width + j[None, :]
    tl.store(target, _rounded(total, out.dtype.element_ty), mask=(i < height)[:, None] & (j < width)[None, :])


# Launchers, with the operators' own signatures


def segment_matmul(x: Tensor, other: Tensor, ptr: Tensor) -> Tensor:
    (rows, depth), (images, _, width) = x.shape, other.shape
    out = x.new_empty((rows, width))
    if out.numel():
        turned = other.mT.is_contiguous()  # as a gradient calls this operator
        constants, options = _constants(x.dtype, None, width, depth)
        tiles = (rows // constants["BLOCK_M"] + images) * triton.cdiv(width, constants["BLOCK_N"])
        given = (x.contiguous(), other.mT if turned else other.contiguous(), ptr.contiguous(), out)
        shape = (images, rows, depth, width)
        segment_matmul_kernel[(tiles,)](*given, *shape, **(constants | {"TURNED": turned}), **options)
    return out


def segment_outer(x: Tensor, y: Tensor, ptr: Tensor) -> Tensor:
    (rows, height), width, images = x.shape, y.shape[1], len(ptr) - 1
    out = x.new_empty((images, height, width))
    if out.numel():
        constants, options = _constants(x.dtype, height, width, None)
        tiles = images * triton.cdiv(height, constants["BLOCK_M"]) * triton.cdiv(width, constants["BLOCK_N"])
        given = (x.contiguous(), y.contiguous(), ptr.contiguous(), out)
        segment_outer_kernel[(tiles,)](*given, images, rows, height, width, **constants, **options)
    return out


def _constants(dtype: torch.dtype, m: int | None, n: int, k: int | None) -> tuple[dict, dict]:
    """A kernel's compile-time arguments but its flags, and how it is compiled, for products of [m, k] and [k, n].

    Blocks are no larger than they need be; None is the number of rows, which changes from batch to batch.
    """
    sizes = TILES[dtype.itemsize]
    options = {name: sizes[name] for name in ("num_warps", "num_stages")}
    constants = {name: size for name, size in sizes.items() if name not in options}
    for name, end in (("BLOCK_M", m), ("BLOCK_N", n), ("BLOCK_K", k)):
        if end is not None:
            constants[name] = min(constants[name], max(triton.next_power_of_2(end), 16))
    tf32 = dtype == torch.float32 and torch.backends.cuda.matmul.fp32_precision == "tf32"
    precision = "tf32" if tf32 else "ieee"  # as PyTorch's own products
    return {"REAL": tl.float64 if dtype == torch.float64 else tl.float32, "PRECISION": precision} | constants, options


def kernels(channels: int = 512, dtypes: tuple[torch.dtype, ...] = (torch.float32, torch.bfloat16)) -> list[dict]:
    """Every kernel as it is launched for x of these dtypes: the fields of irnet.bench.compiled.TritonKernel."""
    shipped = []
    for dtype in dtypes:
        for kernel, flags, shape in (
            (segment_matmul_kernel, {"TURNED": False}, (None, channels, channels)),
            (segment_matmul_kernel, {"TURNED": True}, (None, channels, channels)),
            (segment_outer_kernel, {}, (channels, channels, None)),
        ):
            constants, options = _constants(dtype, *shape)
            constants |= flags
            numbers = ("depth", "height", "width")
            others = {"ptr": "*i64"} | dict.fromkeys(("images", "rows", *numbers), "i32")
            types = {n: others.get(n, TRITON_NAMES[dtype]) for n in kernel.arg_names if n not in constants}
            multiples = tuple(name for name in numbers if name in types)
            arguments = {"function": kernel, "types": types, "constexprs": constants, "multiples_of_16": multiples}
            shipped.append(arguments | options)
    return shipped
