"""How operators are declared, implemented and chosen; no operator's mathematics lives here.

Each operator is declared once per implementation, as an overload: `irnet::crop_resize.reference`, `.cpp`, `.cuda`,
`.triton`; and once without a name, `irnet::crop_resize`, which dispatches by device. PyTorch's dispatcher is the only
registry: an implementation exists where its overload has a kernel.
"""

import functools
import importlib
import importlib.util
import os
from collections.abc import Callable
from typing import Any, NoReturn

import torch

from . import extension
from .numerics import full_float32

IMPLEMENTATIONS = ("cuda", "triton", "cpp", "reference")  # the order in which "auto" looks for one
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"  # Triton kernels run on CPU tensors, slowly: never by "auto"

Context = Any  # autograd's ctx: a torch.autograd.function.FunctionCtx, which takes any attribute
Operators = Callable[[str], Callable[..., Any]]  # the operator of a name, in the implementation that runs

_library = torch.library.Library("irnet", "DEF")
_operators: list[str] = []
_triton_modules: dict[str, str] = {}  # of every operator that has a Triton implementation


class ImplementationUnavailable(RuntimeError):
    """Raised where an implementation was asked for by name and is not there. The message says why and what to do."""


def define(
    name: str,
    schema: str,
    *,
    reference: Callable[..., Any],
    fake: Callable[..., Any],
    backward: Callable[..., Any] | None = None,
    save: Callable[[Context, tuple[Any, ...], Any], None] | None = None,
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


def register_triton_on_cpu(around: Callable[[str, Callable[..., Any]], Callable[..., Any]]) -> None:
    """Let the Triton implementations take CPU tensors, too: `around(name, launcher)` is what then runs."""
    for name, module in _triton_modules.items():
        _library.impl(f"{name}.triton", around(name, _imported(module, name)), "CPU")


def _by_device(name: str, *arguments: Any, **named: Any) -> Any:
    """The operator without the name of an implementation: the one that "auto" takes for the tensors' device."""
    device = next(a.device.type for a in (*arguments, *named.values()) if isinstance(a, torch.Tensor))
    return overload(name, choose(name, "auto", device))(*arguments, **named)


def overload(name: str, impl: str) -> Callable[..., Any]:
    """The operator `irnet::name` in the implementation `impl`."""
    operator: Callable[..., Any] = getattr(getattr(torch.ops.irnet, name), impl)
    return operator


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
    extension.native()  # loads the extension, whose kernels then stand in the dispatcher
    if impl == "auto":
        return next(one for one in IMPLEMENTATIONS if _exists(name, one, device) and _fit(one, device))
    if impl not in IMPLEMENTATIONS:
        raise ValueError(f"{name}: {source} is {impl!r}; choose one of auto, {', '.join(IMPLEMENTATIONS)}")
    if not _exists(name, impl, device):
        have = ", ".join(candidate for candidate in IMPLEMENTATIONS if _exists(name, candidate, device))
        raise ImplementationUnavailable(
            f"{name}: no {impl} kernel for {device} tensors here; {'; '.join(unavailable_reasons(impl, device))}; "
            f"there is: {have}"
        )
    return impl


def preferred(name: str, device: str) -> str | None:
    """The implementation that "auto" runs; None where the environment's IRNET_IMPL is one that the operator has not.

    For an operator of no public name, which whoever sets the variable does not know of.
    """
    extension.native()
    impl = os.environ.get("IRNET_IMPL", "auto")
    return choose(name, "auto", device) if impl == "auto" or _exists(name, impl, device) else None


# What torch.compiler.assume_constant_result does; calling that imports Dynamo, which imports Triton.
choose._dynamo_marked_constant = True  # type: ignore[attr-defined]  # Dynamo looks for it on the function
preferred._dynamo_marked_constant = True  # type: ignore[attr-defined]


def available() -> dict[str, dict[str, list[str]]]:
    """List the implementations that every operator has on this machine.

    Returns:
        Per operator, and per device type of this machine ("cpu", "cuda" where there is a GPU), the names of its
        implementations, in the order in which "auto" looks for one; "auto" takes "triton" on GPUs only.
    """
    extension.native()
    devices = ["cpu"] + (["cuda"] if torch.cuda.is_available() else [])
    return {
        name: {device: [impl for impl in IMPLEMENTATIONS if _exists(name, impl, device)] for device in devices}
        for name in _operators
    }


def _exists(name: str, impl: str, device: str) -> bool:
    key = {"cpu": "CPU", "cuda": "CUDA"}.get(device, "CPU")
    return torch._C._dispatch_has_computed_kernel_for_dispatch_key(f"irnet::{name}.{impl}", key)


def _fit(impl: str, device: str) -> bool:
    """Whether "auto" may take an implementation that exists."""
    return not (impl == "triton" and device == "cpu")


def unavailable_reasons(impl: str, device: str) -> list[str]:
    """All reasons why an implementation is not there for tensors of this device, each with what to do about it."""
    home = "cpu" if impl == "cpp" or (impl == "triton" and INTERPRETED) else "cuda"
    reasons = []
    if device != home:
        reasons.append(f"it runs on {home} tensors only: move them there or take another implementation")
    if impl == "triton" and not _has_triton():
        reasons.append("Triton is not installed: pip install triton")
    if impl in ("cpp", "cuda"):
        native = extension.native()
        if native is None:
            reasons.append(extension.native_reason())
        elif impl == "cuda" and not native.build_info()["cuda_version"]:
            reasons.append("the extension was built without CUDA; FORCE_CUDA=1 with " + extension.REBUILD)
    return reasons or ["this version of irnet has none: take impl='auto'"]


@functools.cache
def _has_triton() -> bool:
    return importlib.util.find_spec("triton") is not None


def _imported(module: str, name: str) -> Callable[..., Any]:
    """A function of a Triton module, which is imported at the first call; kernels start on the tensors' device."""

    def run(*arguments: Any) -> Any:
        function = getattr(importlib.import_module(module, __package__), name)
        with torch.cuda.device_of(next(a for a in arguments if isinstance(a, torch.Tensor))):
            return function(*arguments)

    return run


def _exactly(function: Callable[..., Any]) -> Callable[..., Any]:
    """References choose their own precision and give the same bits twice; autocast and switches stay outside."""

    @functools.wraps(function)
    def run(*arguments: Any) -> Any:
        device = next(a.device.type for a in arguments if isinstance(a, torch.Tensor))
        with torch.autocast(device, enabled=False), full_float32(deterministic=True):
            return function(*arguments)

    return run


def _not_twice(name: str) -> Callable[..., Any]:
    def refuse(ctx: Context, *grads: Any) -> NoReturn:
        raise RuntimeError(f"irnet::{name} is a gradient and cannot be differentiated again")

    return refuse
