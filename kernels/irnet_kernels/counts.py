"""What a call takes besides time, counted and free of noise: memory, operators, launches. Holds no clock."""

import gc
import os
import re
import sys
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch._C._autograd import DeviceType  # torch.autograd has it, too, but does not say that it exports it
from torch.profiler import ProfilerActivity, profile

# An operator, as against the autograd engine's own entries and "[memory]".
OPERATOR = re.compile(r"(?!autograd::|torch::)\w+::\w+")


@dataclass(frozen=True)
class Counts:
    """Sizes in bytes. None is what the device does not tell."""

    peak_allocated_bytes: int  # above what was allocated before
    allocated_bytes: int  # the sum of all allocations
    operators: int  # PyTorch operators, also those that run inside others
    peak_reserved_bytes: int | None = None
    launches: int | None = None


def count(call: Callable[[], object], device: torch.device) -> Counts:
    """Count one call; make it once before, so that what happens only once is over.

    On a CPU all memory from PyTorch's allocator counts, also what a C++ kernel takes by at::empty. What a library
    takes from malloc (oneDNN's scratch memory, say) does not.
    """
    call()
    if device.type == "cuda":
        return _on_gpu(call, device)
    events = _profile(call, [ProfilerActivity.CPU])
    allocations = [(e.start_ns(), e.nbytes()) for e in events if e.name() == "[memory]"]
    present = peak = 0
    for _, size in sorted(allocations, key=lambda a: a[0]):
        present += size
        peak = max(peak, present)
    total = sum(size for _, size in allocations if size > 0)
    return Counts(peak, total, _operators(events))


def saved_bytes(forward: Callable[[], Tensor], leaves: Sequence[Tensor]) -> int:
    """Bytes of distinct memory that `forward` keeps for its backward pass, beyond the leaves."""
    kept: dict[int, tuple[int, Tensor]] = {}

    def pack(tensor: Tensor) -> Tensor:
        for part in _parts(tensor):
            storage = part.untyped_storage()
            kept[storage.data_ptr()] = (storage.nbytes(), part)  # holds the part: its address is not used again
        return tensor

    if "torch._dynamo" in sys.modules:  # a forward that is compiled shall not compile this, too
        pack = torch.compiler.disable(pack)
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        result = forward()
    del result
    own = {leaf.untyped_storage().data_ptr() for leaf in leaves}
    return sum(size for address, (size, _) in kept.items() if address not in own)


def _parts(tensor: Tensor) -> list[Tensor]:
    """The dense tensors that hold a tensor's numbers and, for one in compressed sparse rows, their places."""
    if tensor.layout == torch.sparse_csr:
        return [tensor.crow_indices(), tensor.col_indices(), tensor.values()]
    return [tensor]


def _on_gpu(call: Callable[[], object], device: torch.device) -> Counts:
    torch.cuda.synchronize(device)
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats(device)
    before, reserved = torch.cuda.memory_allocated(device), torch.cuda.memory_reserved(device)
    total = torch.cuda.memory_stats(device).get("allocated_bytes.all.allocated", 0)
    call()
    torch.cuda.synchronize(device)
    peak = torch.cuda.max_memory_allocated(device) - before
    peak_reserved = torch.cuda.max_memory_reserved(device) - reserved
    total = torch.cuda.memory_stats(device).get("allocated_bytes.all.allocated", 0) - total
    events = _profile(call, [ProfilerActivity.CPU, ProfilerActivity.CUDA])
    on_gpu = [e for e in events if e.device_type() == DeviceType.CUDA]
    launches = sum(not e.is_user_annotation() for e in on_gpu)
    return Counts(peak, total, _operators(events), peak_reserved, launches)


def _operators(events: list[Any]) -> int:
    on_cpu = (e for e in events if e.device_type() == DeviceType.CPU)
    return sum(bool(OPERATOR.match(e.name())) for e in on_cpu)


def _profile(call: Callable[[], object], activities: list[ProfilerActivity]) -> list[Any]:
    """The profiler's events of one call."""
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # it greets on standard error
    collecting = gc.isenabled()
    gc.disable()  # what others have left would be freed within the call, and lower its peak
    try:
        with warnings.catch_warnings(), profile(activities=activities, profile_memory=True) as recorded:
            warnings.simplefilter("ignore", UserWarning)
            call()
            if ProfilerActivity.CUDA in activities:
                torch.cuda.synchronize()
    finally:
        if collecting:
            gc.enable()
    events: list[Any] = recorded.profiler.kineto_results.events()
    return events
