"""scale_add(x, y) = 2 x + y in Triton, for tests of the harness: kernel, launcher, shipped configurations."""

import torch
import triton
import triton.language as tl

from irnet_kernels.aot.compiled import TritonKernel

CONFIGURATIONS = ({"BLOCK": 1024, "num_warps": 4}, {"BLOCK": 4096, "num_warps": 8})  # the launcher takes the last
SLOWER = WRONG = BUFFER = tl.constexpr(False)  # damage, set from outside


@triton.jit
def scale_add_kernel(x, y, out, n, BLOCK: tl.constexpr):
    offsets = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    result = 2 * tl.load(x + offsets, mask=offsets < n) + tl.load(y + offsets, mask=offsets < n)
    # All damage stands here; the launcher has the buffer.
    if WRONG:
        result += tl.where(offsets == n // 2, 1.0, 0.0)
    if SLOWER:  # a fifth of the work again
        again = offsets < n // 5
        more = 2 * tl.load(x + offsets, mask=again, volatile=True) + tl.load(y + offsets, mask=again, volatile=True)
        tl.store(out + offsets, more, mask=again)
    tl.store(out + offsets, result, mask=offsets < n)


def scale_add(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """For contiguous tensors of one shape."""
    out, n, config = torch.empty_like(x), x.numel(), CONFIGURATIONS[-1]
    if BUFFER:
        torch.empty_like(x)
    grid = (triton.cdiv(n, config["BLOCK"]),)
    scale_add_kernel[grid](x, y, out, n, **config)
    return out


def kernels() -> list[TritonKernel]:
    """The kernel in every configuration."""
    types = {"x": "*fp32", "y": "*fp32", "out": "*fp32", "n": "i32"}
    return [
        TritonKernel(scale_add_kernel, types, {"BLOCK": config["BLOCK"]}, num_warps=config["num_warps"])
        for config in CONFIGURATIONS
    ]
