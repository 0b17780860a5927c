"""The one exception for bad input, and for what a machine cannot give. The command line prints it as a single line and
exits with code 2."""

import errno
import importlib.util
import math
import os


class InputError(Exception):
    """Something the user gave cannot be used.

    The message names the file (or the option), the trouble and the cure, so that one line is enough to go on.
    """

    def __init__(self, where: str | os.PathLike, trouble: str, cure: str):
        super().__init__(f"{where}: {trouble}; {cure}")
        self.where, self.trouble, self.cure = str(where), trouble, cure

    def __reduce__(self):
        # Exception's own pickling would call __init__ with the one finished message; loader workers send these home.
        return type(self), (self.where, self.trouble, self.cure)


def check_bounds(where: str, value: float | None, least: float, most: float = math.inf) -> None:
    """InputError, naming the option `where`, unless `value` lies within the bounds and is finite; None is no value."""
    if value is None or (least <= value <= most and abs(value) < math.inf):  # false for NaN
        return
    bounds = f"give at least {least}" if most == math.inf else f"give {least} to {most}"
    raise InputError(where, f"{value} is out of range", bounds)


SMALLER = (
    "take less at once (a smaller -b, smaller images, fewer boxes), a smaller model, or a machine with more memory"
)
# What PyTorch, oneDNN and C++ say where memory ends; torch.OutOfMemoryError is a RuntimeError with such a text, too.
_NO_MEMORY = ("out of memory", "can't allocate memory", "Cannot allocate memory", "bad_alloc", "calculation overflowed")
# Packages that irnet cannot do without, by the name of their module.
REQUIRED = {"PIL": "Pillow", "jinja2": "Jinja2", "yaml": "PyYAML"} | {
    name: name for name in ("matplotlib", "msgspec", "numpy", "safetensors", "tabulate", "torch", "tqdm")
}
# What PyTorch says where another process of a group has gone.
_PEERS = ("Connection closed by peer", "Connection reset by peer", "/gloo/", "Gloo ", "NCCL error", "remote process")
_WORKERS = ("DataLoader worker (pid", "Pin memory thread exited")  # not an error that was raised in one of them


def explain(error: BaseException, smaller: str = SMALLER) -> InputError | None:
    """What the user can do about a failure of the machine; None where the error says something else.

    smaller  the cure where memory is short
    """
    text = str(error)
    if isinstance(error, InputError):
        return error
    if isinstance(error, ModuleNotFoundError) and error.name in REQUIRED:
        absent = [
            p for module, p in REQUIRED.items() if module == error.name or importlib.util.find_spec(module) is None
        ]
        are = "is" if len(absent) == 1 else "are"
        return InputError(", ".join(absent), f"{are} not installed", f"pip install {' '.join(absent)}")
    if is_out_of_memory(error):
        return InputError("memory", f"there is too little ({_line(text, _NO_MEMORY)})", smaller)
    if _has(error, _WORKERS):
        trouble = f"a loader process ended before its time ({_line(text, ('killed by signal', 'exited'))})"
        return InputError("--workers", trouble, "take fewer with -j, or a machine with more memory")
    if _has(error, _PEERS):
        trouble = f"has ended or cannot be reached ({_line(text, _PEERS)})"
        cure = "see what it has said; irnet train --resume goes on, torchrun --max-restarts lets it do so by itself"
        return InputError("another process of the run", trouble, cure)
    code = error.errno if isinstance(error, OSError) else None
    if code in (errno.EMFILE, errno.EAGAIN) or _has(error, ("Too many open files",)):
        trouble = f"the system's limit is reached ({_line(text, ('Too many', 'unavailable'))})"
        return InputError("--workers", trouble, "take fewer with -j, or raise the limit (ulimit -n, ulimit -u)")
    if isinstance(error, OSError) and error.filename is not None:  # out of reach, a name too long, a loop of links
        where = os.fsdecode(error.filename)
        return InputError(where, error.strerror or text, "check the path and its permissions")
    if any(kind.__module__.startswith(("torch._dynamo", "torch._inductor")) for kind in type(error).__mro__):
        marks = ("No working C++ compiler", "Triton", "triton", "Error", "error")
        cure = "install a C++ compiler (g++) or name one in CXX, or leave out --compile"
        return InputError("--compile", f"cannot compile the model ({_line(text, marks)})", cure)
    return None


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that there is too little memory, on the machine or on its GPU."""
    code = error.errno if isinstance(error, OSError) else None
    return isinstance(error, MemoryError) or code == errno.ENOMEM or _has(error, _NO_MEMORY)


def _has(error: BaseException, marks: tuple[str, ...]) -> bool:
    return isinstance(error, RuntimeError) and any(mark in str(error) for mark in marks)


def _line(text: str, marks: tuple[str, ...]) -> str:
    """The line of an error's text that says most, shortened."""
    lines = [line.strip() for line in text.splitlines() if line.strip()] or ["no more is known"]
    telling = (line for mark in marks for line in lines if mark in line)
    return next(telling, lines[0])[:200]
