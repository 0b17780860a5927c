"""Triton kernels on the CPU: loads copies of Triton modules whose kernels are interpreted. Compiles nothing."""

import contextlib
import functools
import importlib.util
import os
import sys
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from .tools import import_triton


def load(where: str | os.PathLike[str], interpret: bool) -> types.ModuleType:
    """A fresh copy of the Triton module of this name or path, whatever TRITON_INTERPRET says.

    interpret  its kernels run in Triton's interpreter, on CPU tensors; otherwise they can be compiled
    The copy is not in `sys.modules`, and a running kernel leaves nothing of Triton changed: both kinds of copies work
    side by side. What a module does when it is imported happens again, so it should only define kernels and launchers.
    So it is with the modules of kernels that it imports: they are copies of the same kind.
    """
    triton = import_triton()
    spec = importlib.util.find_spec(where) if isinstance(where, str) and not where.endswith(".py") else None
    path, name = (spec.origin or "", spec.name) if spec else (os.fspath(where), Path(where).stem)
    # A name of its own, but the same package: relative imports work.
    spec = importlib.util.spec_from_file_location(f"{name}__{'interpreted' if interpret else 'compiled'}", path)
    if spec is None or spec.loader is None or not Path(path).is_file():
        raise ImportError(f"there is no Triton module {where}")
    module = importlib.util.module_from_spec(spec)
    with _afresh(), _interpreting() if interpret else triton.knobs.runtime.scope():
        triton.knobs.runtime.interpret = interpret
        spec.loader.exec_module(module)
    return module


@contextlib.contextmanager
def _afresh() -> Iterator[None]:
    """Within, modules that have imported Triton, but those of Triton and PyTorch, are imported anew; then they are what
    they were."""

    def take_away() -> dict[str, types.ModuleType]:
        names = [name for name, module in sys.modules.items() if _has_triton(name, module)]
        return {name: sys.modules.pop(name) for name in names}

    before = take_away()
    try:
        yield
    finally:
        take_away()
        sys.modules.update(before)
        for name, module in before.items():  # importing a module makes it an attribute of its package, too
            parent, _, last = name.rpartition(".")
            if parent:
                setattr(sys.modules[parent], last, module)


def _has_triton(name: str, module: types.ModuleType) -> bool:
    has = getattr(getattr(module, "__dict__", {}).get("triton"), "__name__", "") == "triton"
    return has and name.partition(".")[0] not in ("triton", "torch")


@contextlib.contextmanager
def _interpreting() -> Iterator[None]:
    """Within, `@triton.jit` makes functions that are interpreted, now and at every later call; outside nothing changes.

    Triton's own switch is read when a module is imported, so functions of other modules, such as `tl.sum`, stay what
    they are; here one that is compiled is interpreted, too, when it is called. For a call Triton's interpreter replaces
    functions of `triton.language`, and does not put all of them back.
    """
    import triton.language as tl
    from triton import knobs
    from triton.runtime import interpreter
    from triton.runtime.jit import JITFunction

    class Interpreted(interpreter.InterpretedFunction):
        def run(self, *args: Any, **kwargs: Any) -> Any:
            with _interpreting():
                return super().run(*args, **kwargs)

    builder = interpreter.InterpreterBuilder
    changed = [interpreter, builder, JITFunction]
    changed += [tl, tl.core, tl.math, tl.tensor, tl.dtype, tl.core.tensor_descriptor_base]
    before = [(owner, dict(vars(owner))) for owner in changed]
    try:
        with knobs.runtime.scope():
            knobs.runtime.interpret = True
            interpreter.InterpretedFunction = Interpreted
            builder.create_fma = _fused
            JITFunction.__call__ = lambda self, *args, **kwargs: _interpretable(self.fn)(*args, **kwargs)
            JITFunction.__get__ = _bind
            yield
    finally:
        for owner, attributes in before:
            for name in vars(owner).keys() - attributes.keys():
                delattr(owner, name)
            for name, value in attributes.items():
                if vars(owner).get(name) is not value:
                    setattr(owner, name, value)


def _bind(function: Any, instance: Any, owner: type | None = None) -> Any:
    """Bind a function to a tensor, so that `x.sum()` works: methods of `tl.tensor` are compiled functions."""
    return function if instance is None else functools.partial(function, instance)


def _fused(builder: Any, x: Any, y: Any, z: Any) -> Any:
    """`tl.fma` rounded once, as a GPU does; Triton's interpreter rounds the product, too. Not in float64."""
    from triton.runtime.interpreter import TensorHandle

    dtype = np.promote_types(z.data.dtype, np.float64)
    return TensorHandle((x.data.astype(dtype) * y.data + z.data).astype(z.data.dtype), z.dtype.scalar)


@functools.cache
def _interpretable(python: types.FunctionType) -> Any:
    """The interpreted counterpart of a compiled function, on a copy of its globals: the interpreter adds to them."""
    from triton.runtime.interpreter import InterpretedFunction

    copy = types.FunctionType(
        python.__code__, dict(python.__globals__), python.__name__, python.__defaults__, python.__closure__
    )
    return InterpretedFunction(functools.update_wrapper(copy, python, updated=()))
