"""float32 that is float32, without TF32 or bfloat16, and 16 bits that are summed in float32, whatever PyTorch's
switches say. Nothing is computed here."""

import contextlib
from collections.abc import Iterator, Sequence

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
    switches = [getattr(part, op) for part in (backends.cudnn, backends.mkldnn) for op in ("conv", "rnn")]
    switches += [backends.cuda.matmul, backends.mkldnn.matmul]
    before = [switch.fp32_precision for switch in switches]
    # Not backends.cudnn's attributes: those cannot be set after torch.backends.disable_global_flags().
    cudnn = torch._C._get_cudnn_benchmark(), torch._C._get_cudnn_deterministic()
    old = None
    try:
        for switch in switches:
            switch.fp32_precision = "ieee"
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
        for switch, precision in zip(switches, before, strict=True):
            switch.fp32_precision = "none"  # what was inherited stays so
            if switch.fp32_precision != precision:
                switch.fp32_precision = precision


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


def autocasting(device: str) -> bool:
    """Whether autocast is on for a device type: meta tensors know no autocast.

    torch.amp.is_autocast_available would say which do, but Dynamo cannot trace it before torch 2.12.
    """
    return device in ("cpu", "cuda") and torch.is_autocast_enabled(device)


def autocast(*tensors: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """The tensors in autocast's dtype where it is on for their device, as for PyTorch's own matrix products."""
    device = tensors[0].device.type
    if not autocasting(device):
        return tensors
    dtype = torch.get_autocast_dtype(device)
    return tuple(t.to(dtype) if t.is_floating_point() and t.dtype != torch.float64 else t for t in tensors)


def opmath_dtype(dtype: torch.dtype) -> torch.dtype:
    """The dtype in which references compute: float64 for float64, else float32."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def empty_map(like: torch.Tensor, shape: Sequence[int], dtype: torch.dtype | None = None) -> torch.Tensor:
    """An uninitialised channels_last tensor of `shape`: how every map and patch leaves an operator."""
    return torch.empty(shape, dtype=dtype or like.dtype, device=like.device, memory_format=torch.channels_last)
