"""How operators are declared, implemented and chosen; no operator's mathematics lives here.

Each operator is declared once per implementation, as an overload: `irnet::crop_resize.reference`, `.cpp`, `.cuda`,
`.triton`; and once without a name, `irnet::crop_resize`, which dispatches by device. PyTorch's dispatcher is the only
registry: an implementation exists where its overload has a kernel.
"""

import functools
import importlib
import importlib.util
import itertools
import os
from collections.abc import Callable, Sequence

import torch

from . import build_info
from .precision import full_float32

IMPLEMENTATIONS = ("cuda", "triton", "cpp", "reference")  # the order in which "auto" looks for one
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"  # Triton kernels run on CPU tensors, slowly: never by "auto"

_library = torch.library.Library("irnet", "DEF")
_operators: list[str] = []
_triton_modules: dict[str, str] = {}  # of every operator that has a Triton implementation


class ImplementationUnavailable(RuntimeError):
    """An implementation was asked for by name and is not there. The message says why and what to do."""


def define(
    name: str,
    schema: str,
    *,
    reference: Callable,
    fake: Callable,
    backward: Callable | None = None,
    save: Callable | None = None,
    triton: str | None = None,
    public: bool = True,
) -> None:
    """Declare the operator `irnet::name` for every implementation and register its reference.

    `backward(overload, ctx, *grads)` is given a function that finds another operator of the same implementation, so a
    gradient never mixes implementations; `save(ctx, inputs, output)` stores what it needs. Without them the operator
    is a gradient itself, and differentiating it again raises. `triton` names the module, imported when first needed,
    whose function `name` is the Triton implementation.
    """
    if public:
        _operators.append(name)
    # First, because TorchScript forgets the name of an overload and takes the first of equal signature.
    _library.define(name + schema)
    _library.impl(name, functools.partial(_by_device, name), "CompositeImplicitAutograd")
    for impl in IMPLEMENTATIONS:
        qualified = f"{name}.{impl}"
        _library.define(qualified + schema)
        torch.library.register_fake(f"irnet::{qualified}", fake, lib=_library)
        torch.library.register_autograd(
            f"irnet::{qualified}",
            functools.partial(backward, functools.partial(overload, impl=impl)) if backward else _not_twice(name),
            setup_context=save or (lambda ctx, inputs, output: None),
            lib=_library,
        )
    _library.impl(f"{name}.reference", _exactly(reference), "CompositeExplicitAutograd")
    if triton and _has_triton():
        _triton_modules[name] = triton
        _library.impl(f"{name}.triton", _imported(triton, name), "CPU" if INTERPRETED else "CUDA")


def register_triton_on_cpu(around: Callable[[str, Callable], Callable]) -> None:
    """Let the Triton implementations take CPU tensors, too: `around(name, launcher)` is what then runs."""
    for name, module in _triton_modules.items():
        _library.impl(f"{name}.triton", around(name, _imported(module, name)), "CPU")


def _by_device(name: str, *arguments, **named):
    """The operator without the name of an implementation: the one that "auto" takes for the tensors' device."""
    device = next(a.device.type for a in (*arguments, *named.values()) if isinstance(a, torch.Tensor))
    return overload(name, choose(name, "auto", device))(*arguments, **named)


def overload(name: str, impl: str) -> Callable:
    """The operator `irnet::name` in the implementation `impl`."""
    return getattr(getattr(torch.ops.irnet, name), impl)


def choose(name: str, impl: str, device: str) -> str:
    """The implementation that a call runs: `impl`, or the first available one where it is "auto".

    name    the operator
    impl    "auto" or a member of IMPLEMENTATIONS; "auto" defers to the environment's IRNET_IMPL first
    device  "cpu" or "cuda"
    Raises ValueError for a name that is no implementation, ImplementationUnavailable for one that is not there.
    """
    source = "impl"
    if impl == "auto":
        impl, source = os.environ.get("IRNET_IMPL", "auto"), "the environment's IRNET_IMPL"
    build_info.native()  # loads the extension, whose kernels then stand in the dispatcher
    if impl == "auto":
        return next(one for one in IMPLEMENTATIONS if _exists(name, one, device) and _fit(one, device))
    if impl not in IMPLEMENTATIONS:
        raise ValueError(f"{name}: {source} is {impl!r}; choose one of auto, {', '.join(IMPLEMENTATIONS)}")
    if not _exists(name, impl, device):
        have = ", ".join(candidate for candidate in IMPLEMENTATIONS if _exists(name, candidate, device))
        raise ImplementationUnavailable(
            f"{name}: no {impl} kernel for {device} tensors here; {_why(impl, device)}; there is: {have}"
        )
    return impl


# What torch.compiler.assume_constant_result(choose) does; calling that imports Dynamo, which imports Triton.
choose._dynamo_marked_constant = True


def available() -> dict[str, dict[str, list[str]]]:
    """Per operator and device type of this machine, the implementations there are, the one "auto" takes first."""
    build_info.native()
    devices = ["cpu"] + (["cuda"] if torch.cuda.is_available() else [])
    return {
        name: {device: [impl for impl in IMPLEMENTATIONS if _exists(name, impl, device)] for device in devices}
        for name in _operators
    }


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


def accumulator(dtype: torch.dtype) -> torch.dtype:
    """The dtype in which references compute: float64 for float64, else float32."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def empty_map(like: torch.Tensor, shape: Sequence[int], dtype: torch.dtype | None = None) -> torch.Tensor:
    """An uninitialised channels_last tensor of `shape`: how every map and patch leaves an operator."""
    return torch.empty(shape, dtype=dtype or like.dtype, device=like.device, memory_format=torch.channels_last)


def check(condition: bool, name: str, message: Callable[[], str]) -> None:
    """Raise ValueError("name: message") unless `condition`."""
    if not condition:
        raise ValueError(f"{name}: {message()}")


def check_floats(name: str, **tensors: torch.Tensor) -> None:
    """All tensors share one floating dtype (float64, float32, bfloat16 or float16) and one device."""
    dtypes = {argument: t.dtype for argument, t in tensors.items()}
    allowed = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
    check(
        len(set(dtypes.values())) == 1 and next(iter(dtypes.values())) in allowed,
        name,
        lambda: f"wants one floating dtype, got {', '.join(f'{a} {d}' for a, d in dtypes.items())}",
    )
    check_device(name, **tensors)


def check_device(name: str, **tensors: torch.Tensor) -> None:
    """All tensors are on one device."""
    devices = {argument: t.device for argument, t in tensors.items()}
    check(
        len(set(devices.values())) == 1,
        name,
        lambda: f"wants one device, got {', '.join(f'{a} on {d}' for a, d in devices.items())}",
    )


def check_ragged(name: str, boxes: torch.Tensor, ptr: torch.Tensor, images: int | None = None) -> None:
    """`boxes` is float32 [R, 4], `ptr` int64 [B + 1] (B = `images` where given). Their values are not looked at."""
    check(
        boxes.dim() == 2 and boxes.shape[1] == 4 and boxes.dtype == torch.float32,
        name,
        lambda: f"boxes must be float32 [R, 4], got {boxes.dtype} {list(boxes.shape)}",
    )
    check_ptr(name, ptr, images)


def check_ptr(name: str, ptr: torch.Tensor, images: int | None = None) -> None:
    """`ptr` is int64 [B + 1] (B = `images` where given). Its values are not looked at."""
    check(
        ptr.dim() == 1 and ptr.dtype == torch.int64 and ptr.shape[0] >= 1,
        name,
        lambda: f"ptr must be int64 [B + 1], got {ptr.dtype} {list(ptr.shape)}",
    )
    check(
        images is None or ptr.shape[0] == images + 1,
        name,
        lambda: f"ptr must have {images + 1} entries for {images} images, got {ptr.shape[0]}",
    )


def image_slices(name: str, ptr: torch.Tensor, regions: int) -> list[slice]:
    """`ptr` as one slice of the regions per image. Copies ptr to the host: for references only."""
    bounds = ptr.tolist()
    check(
        bounds[0] == 0 and bounds[-1] == regions and bounds == sorted(bounds),
        name,
        lambda: f"ptr must rise from 0 to the number of regions ({regions}), got {bounds}",
    )
    return [slice(low, high) for low, high in itertools.pairwise(bounds)]


def _exists(name: str, impl: str, device: str) -> bool:
    key = {"cpu": "CPU", "cuda": "CUDA"}.get(device, "CPU")
    return torch._C._dispatch_has_computed_kernel_for_dispatch_key(f"irnet::{name}.{impl}", key)


def _fit(impl: str, device: str) -> bool:
    """Whether "auto" may take an implementation that exists."""
    return not (impl == "triton" and device == "cpu")


def _why(impl: str, device: str) -> str:
    """Why an implementation is not there, and what to do."""
    home = "cpu" if impl == "cpp" or (impl == "triton" and INTERPRETED) else "cuda"
    if device != home:
        return f"it runs on {home} tensors only: move them there or take another implementation"
    if impl == "triton" and not _has_triton():
        return "Triton is not installed: pip install triton"
    if impl != "triton" and build_info.native() is None:
        return build_info.native_reason()
    if impl == "cuda" and not build_info.native().build_info()["cuda_version"]:
        return "the extension was built without CUDA; FORCE_CUDA=1 with " + build_info.REBUILD
    return "this version of irnet has none: take impl='auto'"


@functools.cache
def _has_triton() -> bool:
    return importlib.util.find_spec("triton") is not None


def _imported(module: str, name: str) -> Callable:
    """A function of a Triton module, which is imported at the first call; kernels start on the tensors' device."""

    def run(*arguments):
        function = getattr(importlib.import_module(module, __package__), name)
        with torch.cuda.device_of(next(a for a in arguments if isinstance(a, torch.Tensor))):
            return function(*arguments)

    return run


def _exactly(function: Callable) -> Callable:
    """References choose their own precision and give the same bits twice; autocast and switches stay outside."""

    @functools.wraps(function)
    def run(*arguments):
        device = next(a.device.type for a in arguments if isinstance(a, torch.Tensor))
        with torch.autocast(device, enabled=False), full_float32(deterministic=True):
            return function(*arguments)

    return run


def _not_twice(name: str) -> Callable:
    def refuse(ctx, *grads):
        raise RuntimeError(f"irnet::{name} is a gradient and cannot be differentiated again")

    return refuse
