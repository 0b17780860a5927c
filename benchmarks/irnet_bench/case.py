"""What a case is: one set-up for speed, memory, correctness, the gate, tests and the report. Measures nothing."""

import functools
import importlib
import importlib.util
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType

import torch
from torch import Tensor

import irnet_kernels
from irnet.errors import InputError

SUITES = ("kernels", "model", "training", "data")
MODES = ("forward", "backward", "step")  # without gradients; the gradients alone; both
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


@dataclass(frozen=True)
class Implementation:
    """One way to compute a case.

    call     takes the inputs and returns one tensor; None where it cannot run here
    peer     somebody else's program, or plain PyTorch: measured beside irnet, not answered for by it
    checked  whether it computes what the case computes, so that its result is held to the error budget
    missing  why `call` is None, and the command that cures it
    """

    call: Callable[..., Tensor] | None
    peer: bool = False
    checked: bool = True
    missing: str = ""


@dataclass
class Work:
    """A case set up for one shape, dtype and device.

    inputs       the inputs that are differentiated; without any, the case has the one mode "forward"
    implementations  by name; the one called `reference` defines the result: in float64 it is the truth
    bytes        the fewest bytes that each mode must move, each input read once and each output written once
    flops        the fewest floating-point operations of each mode; a mode that is absent has no known limit
    items, unit  what one call processes, for throughput: (64, "regions")
    reference    the name of the implementation that defines the result
    baseline     the name of the peer against which the gate holds the time
    modes        those that make sense for the case
    slack        the error, as a share of its scale, that any gradient may have, whatever the reference's own
    update       called with the inputs and their gradients at the end of a step: an optimiser's part
    """

    inputs: list[Tensor]
    implementations: dict[str, Implementation]
    bytes: Mapping[str, float] = field(default_factory=dict)
    flops: Mapping[str, float] = field(default_factory=dict)
    items: int = 1
    unit: str = "calls"
    reference: str = "reference"
    baseline: str | None = None
    modes: tuple[str, ...] = MODES
    update: Callable[[list[Tensor], tuple[Tensor, ...]], None] | None = None
    slack: float = 0.0

    def __post_init__(self) -> None:
        if not self.inputs:
            self.modes = ("forward",)

    def compiled(self) -> list[str]:
        """irnet's implementations that can run here, but the reference, which is PyTorch's operators."""
        return [n for n, one in self.implementations.items() if not one.peer and one.call and n != self.reference]


class Setup:
    """What a case is built from: the numbers of its shape as attributes, the dtype, the device, and seeded inputs.

    Boxes, edges and other small inputs are drawn on the CPU by `generator`, so that a seed gives the same ones on every
    device; maps and weights are drawn on the case's own device, where large ones take no time.
    """

    def __init__(self, shape: Mapping[str, int], dtype: torch.dtype, device: torch.device, seed: int = 0):
        self.shape, self.dtype, self.device, self.seed = dict(shape), dtype, device, seed
        self.generator = torch.Generator().manual_seed(seed)
        on_cpu = device.type == "cpu"
        self.map_generator = self.generator if on_cpu else torch.Generator(device).manual_seed(seed)

    def __getattr__(self, name: str) -> int:
        try:
            return self.__dict__["shape"][name]
        except KeyError:
            raise AttributeError(f"this case has no {name!r} in its shape") from None

    def normal(self, *size: int, scale: float = 1.0) -> Tensor:
        """Standard normal numbers times `scale`, in the case's dtype; 4-D tensors are channels_last."""
        values = (torch.randn(size, generator=self.map_generator, device=self.device) * scale).to(self.dtype)
        return values.to(memory_format=torch.channels_last) if values.dim() == 4 else values

    def ragged(self, images: int, regions: int) -> Tensor:
        """`ptr` of `images` that own `regions` on the average: one half more and one half less, in turns."""
        counts = torch.full((images,), regions)
        shift = torch.arange(images - images % 2) % 2 * 2 - 1
        counts[: len(shift)] -= shift * (regions // 2)
        return torch.cat([counts.new_zeros(1), counts.cumsum(0)]).to(self.device)

    def boxes(self, count: int, height: float, width: float, least: float = 40, most: float = 300) -> Tensor:
        """float32 [count, 4] inside an image of `height` x `width` pixels, sides from `least` to `most` pixels."""
        limit = torch.tensor([width, height])
        side = least + (most - least) * torch.rand(count, 2, generator=self.generator)
        side = torch.minimum(side, limit)
        corner = torch.rand(count, 2, generator=self.generator) * (limit - side)
        return torch.cat([corner, corner + side], 1).to(self.device)


@dataclass(frozen=True)
class Case:
    """A named case. `shapes` and `dtypes` have the keys "cpu", "cuda" and "gate" (small, for counts and tests)."""

    suite: str
    name: str
    build: Callable[[Setup], Work]
    shapes: Mapping[str, Mapping[str, int]]
    dtypes: Mapping[str, tuple[str, ...]]


@dataclass(frozen=True)
class Job:
    """One call of a case to measure in another process: the gate's processes are told of their work in these."""

    case: str
    implementation: str
    mode: str = "forward"
    dtype: str = "float32"


def case(
    suite: str,
    *,
    cpu: Mapping[str, int],
    cuda: Mapping[str, int] | None = None,
    gate: Mapping[str, int] | None = None,
    dtypes: Mapping[str, tuple[str, ...]] | None = None,
) -> Callable[[Callable[[Setup], Work]], Case]:
    """Make a case of the function below: it takes a `Setup` and returns a `Work`; its docstring says what it computes.

    suite            one of SUITES
    cpu, cuda, gate  its shape on each device and in the gate, {name: number}; what is not given is `cpu`'s, {} for
                     `gate` keeps it out of the gate
    dtypes           per key those that are measured unless asked otherwise
    """
    if suite not in SUITES:
        raise ValueError(f"no suite is called {suite!r}; there are {', '.join(SUITES)}")
    shapes = {"cpu": cpu, "cuda": cpu if cuda is None else cuda, "gate": cpu if gate is None else gate}
    measured = {"cpu": ("float32",), "cuda": ("float32", "bfloat16"), "gate": ("float32",)} | dict(dtypes or {})

    def make(build: Callable[[Setup], Work]) -> Case:
        return Case(suite, build.__name__, build, shapes, measured)

    return make


def cases(suite: str = "all", contains: str = "", files: Sequence[str] = ()) -> list[Case]:
    """The cases of a suite whose name contains a text, and those of further files, in the order of their definition.

    Raises InputError where no case is left, where there is no such file, or where two cases have one name.
    """
    by_name: dict[str, Case] = {}
    for module in modules(files):
        for value in vars(module).values():
            if isinstance(value, Case) and value.build.__module__ == module.__name__:  # not one that it imports
                if value.name in by_name:
                    raise InputError(module.__file__, f"there is another case called {value.name}", "rename it")
                by_name[value.name] = value
    of_suite = [c for c in by_name.values() if suite in ("all", c.suite)]
    chosen = [c for c in of_suite if contains in c.name]
    if not chosen:
        names = ", ".join(c.name for c in of_suite)
        raise InputError("--filter", f"no case of {suite} contains {contains!r}", f"there are {names or 'none'}")
    return chosen


def modules(files: Sequence[str] = ()) -> list[ModuleType]:
    """The modules that define cases: irnet's own, then those of further files. compiled.py names their other parts."""
    own = [importlib.import_module(f"{__package__}.suites.{name}") for name in SUITES]
    return own + [_file_module(str(Path(path).resolve())) for path in files]


def operator_implementations(op: str, device: torch.device, call: Callable[..., Tensor]) -> dict[str, Implementation]:
    """irnet's implementations of an operator on a device; `call(impl, *inputs)` runs one of them."""

    def bind(impl: str) -> Implementation:
        return Implementation(lambda *inputs: call(impl, *inputs))

    return {impl: bind(impl) for impl in irnet_kernels.available()[op][device.type]}


@functools.cache
def _file_module(path: str) -> ModuleType:
    if not path.endswith(".py") or not Path(path).is_file():
        raise InputError(path, "is no Python file", "give a file that defines cases")
    spec = importlib.util.spec_from_file_location(f"irnet_bench_cases_{Path(path).stem}", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
