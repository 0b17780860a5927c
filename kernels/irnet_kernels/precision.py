"""float32 that is float32, without TF32 or bfloat16, and 16 bits that are summed in float32, whatever PyTorch's
switches say. Nothing is computed here."""

import contextlib
from collections.abc import Iterator

import torch
from torch import backends


@contextlib.contextmanager
def full_float32(deterministic: bool = False) -> Iterator[None]:
    """Within, matrix products and convolutions of float32 round nothing to TF32 or bfloat16, on any device.

    deterministic  cuDNN takes the same algorithm at every call, else the fastest that it finds
    The old switches (allow_tf32, set_float32_matmul_precision) and the new (fp32_precision) are one state in PyTorch,
    which refuses to read the old where they contradict each other: both are set, and put back to what they said. Like
    all of PyTorch's switches they hold for the process, not for a thread; and cuDNN's, once put back, no longer follow
    `torch.backends.fp32_precision`.
    """
    places = [getattr(part, op) for part in (backends.cudnn, backends.mkldnn) for op in ("conv", "rnn")]
    places += [backends.cuda.matmul, backends.mkldnn.matmul]
    before = [place.fp32_precision for place in places]
    # Not backends.cudnn's attributes: those cannot be set after torch.backends.disable_global_flags().
    cudnn = torch._C._get_cudnn_benchmark(), torch._C._get_cudnn_deterministic()
    old = None
    try:
        for place in places:
            place.fp32_precision = "ieee"
        old = torch.get_float32_matmul_precision()  # readable now, even where it contradicted the new switches
        torch.set_float32_matmul_precision("highest")
        torch._C._set_cudnn_benchmark(not deterministic)
        torch._C._set_cudnn_deterministic(deterministic)
        yield
    finally:
        torch._C._set_cudnn_benchmark(cudnn[0])
        torch._C._set_cudnn_deterministic(cudnn[1])
        if old is not None:
            torch.set_float32_matmul_precision(old)
        for place, precision in zip(places, before, strict=True):
            place.fp32_precision = "none"  # what was inherited stays so
            if place.fp32_precision != precision:
                place.fp32_precision = precision


@contextlib.contextmanager
def float32_reductions() -> Iterator[None]:
    """Within, matrix products of 16 bits on a GPU add partial sums in float32; PyTorch's default lets them be 16 bits.

    Like `full_float32` it holds for the process and puts the switches back to what they said.
    """
    matmul = backends.cuda.matmul
    names = ("allow_fp16_reduced_precision_reduction", "allow_bf16_reduced_precision_reduction")
    before = [(getattr(matmul, name), getattr(matmul, f"{name}_split_k")) for name in names]
    try:
        for name, (_, split_k) in zip(names, before, strict=True):
            setattr(matmul, name, (False, split_k))
        yield
    finally:
        for name, said in zip(names, before, strict=True):
            setattr(matmul, name, said)
