"""float32 that is float32, without TF32 or bfloat16, whatever PyTorch's switches say. Nothing is computed here."""

import contextlib
from collections.abc import Iterator

import torch
from torch import backends


@contextlib.contextmanager
def full_float32(deterministic: bool = False) -> Iterator[None]:
    """Within, matrix products and convolutions of float32 round nothing to TF32 or bfloat16, on any device.

    deterministic  cuDNN takes the same algorithm at every call, else the fastest that it finds
    The old switches (allow_tf32, set_float32_matmul_precision) and the new (fp32_precision) are one state in PyTorch,
    which refuses to read the old where they contradict each other: both are set, and put back as they were.
    """
    places = [getattr(part, op) for part in (backends.cudnn, backends.mkldnn) for op in ("conv", "rnn")]
    places += [backends.cuda.matmul, backends.mkldnn.matmul]
    before = [place.fp32_precision for place in places]
    for place in places:
        place.fp32_precision = "ieee"
    old = torch.get_float32_matmul_precision()  # readable now, even where it contradicted the new switches
    torch.set_float32_matmul_precision("highest")
    cudnn = backends.cudnn.benchmark, backends.cudnn.deterministic
    backends.cudnn.benchmark, backends.cudnn.deterministic = not deterministic, deterministic
    try:
        yield
    finally:
        backends.cudnn.benchmark, backends.cudnn.deterministic = cudnn
        torch.set_float32_matmul_precision(old)
        for place, precision in zip(places, before, strict=True):
            place.fp32_precision = precision
