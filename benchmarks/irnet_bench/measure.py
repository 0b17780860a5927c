"""One case in one shape and dtype: is every implementation right, what does it take, how long. Writes no file."""

import contextlib
import functools
import time
import warnings
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from irnet_kernels import counts
from irnet_kernels.testing import Accuracy, accuracy

from . import timing
from .case import DTYPES, MODES, Case, Implementation, Setup, Work
from .machine import synchronize
from .records import ERROR, OK, OOM, SKIPPED

# A peer is to compute the same function, not to take coordinates and sums in the same order: so many roundings of
# float32, at the scale of the result, are added to its budget. A position of 64 cells is that many of them off.
PEER_ROUNDINGS = 64


class Failure(Exception):
    """An implementation that cannot be measured: its status and the reason."""

    def __init__(self, status: str, reason: str):
        super().__init__(reason)
        self.status, self.reason = status, reason


@dataclass(frozen=True)
class Settings:
    """What is measured of every case, and how.

    modes      what is timed, in the order of MODES
    seconds    how long each implementation is timed in each mode
    seed       of the inputs
    without    a text: implementations whose name contains it are left out, but for the reference
    baseline_only  of the peers take only the one to which the gate holds the time; the reference is the truth, no more
    """

    modes: tuple[str, ...] = MODES
    seconds: float = 0.5
    seed: int = 0
    without: str = ""
    baseline_only: bool = False


@dataclass
class Result:
    """What is known of one implementation in one mode; the names are those of records.Record."""

    peer: bool = False
    status: str = OK
    reason: str | None = None
    figures: dict = field(default_factory=dict)

    def fail(self, failure: Failure) -> None:
        """No figure of speed is kept of what failed."""
        self.status, self.reason = failure.status, failure.reason
        kept = ("error", "budget", "scale", "items", "unit", "fewest_bytes", "fewest_flops")
        self.figures = {name: value for name, value in self.figures.items() if name in kept}


def measure(
    case: Case,
    shape: dict[str, int],
    dtype: str,
    device: torch.device,
    settings: Settings = Settings(),
    tick: Callable[[str], None] = lambda text: None,
) -> dict[tuple[str, str], Result]:
    """Results of all implementations of a case, by (implementation, mode).

    tick  called with what is being done, for a progress bar
    An implementation whose result is outside its error budget has the status "error" and no speed.
    """
    tick("set-up")
    modes, without = settings.modes, settings.without
    try:
        work = _attempt(lambda: case.build(Setup(shape, DTYPES[dtype], device, settings.seed)))
    except Failure as failure:
        return {("reference", mode): Result(False, failure.status, f"set-up: {failure.reason}") for mode in modes}
    ways = work.implementations
    if without:
        ways = {n: way for n, way in ways.items() if without not in n or n == work.reference}
    if settings.baseline_only:
        ways = {n: way for n, way in ways.items() if not way.peer or n == work.baseline}
    work.implementations = ways
    if not work.inputs:  # nothing of it runs on the device
        device = torch.device("cpu")
    modes = tuple(mode for mode in modes if mode in work.modes)
    results = examine(work, device, modes, tick=tick)
    if settings.baseline_only:
        results = {key: result for key, result in results.items() if key[0] != work.reference}
    for mode in modes:
        racing = [name for name, m in results if m == mode and results[name, m].status == OK]
        tick(f"timing {mode}")
        _time(work, racing, mode, device, settings.seconds, results)
    return results


def examine(
    work: Work,
    device: torch.device,
    modes: Iterable[str] = MODES,
    peers: bool = True,
    tick: Callable[[str], None] = lambda text: None,
) -> dict[tuple[str, str], Result]:
    """Results without times: correctness and counts. Implementations that cannot run are skipped, with the reason."""
    modes = [mode for mode in modes if mode in work.modes]
    entered = {name: one for name, one in work.implementations.items() if peers or not one.peer}
    results = {(name, mode): Result(one.peer) for name, one in entered.items() for mode in modes}
    tick("truth")
    try:
        check = _attempt(lambda: CorrectnessCheck(work, modes))
        no_truth = None
    except Failure as failure:
        no_truth = Failure(failure.status, f"no truth to compare with: {failure.reason}")

    for (name, mode), result in results.items():
        tick(f"{name} {mode}")
        implementation = entered[name]
        result.figures |= {"items": work.items, "unit": work.unit}
        result.figures |= {"fewest_bytes": work.bytes.get(mode), "fewest_flops": work.flops.get(mode)}
        if implementation.call is None:
            result.fail(Failure(SKIPPED, implementation.missing))
        elif no_truth:
            result.fail(no_truth)
        else:
            try:
                _attempt(functools.partial(_examine, work, name, mode, check, device, result.figures))
            except Failure as failure:
                result.fail(failure)
            _release(device)
    return results


def mode_call(work: Work, implementation: Implementation, mode: str, inputs: list[Tensor] | None = None) -> Callable:
    """The call that a mode consists of, on `inputs` or the work's own."""
    inputs = work.inputs if inputs is None else inputs
    call = implementation.call

    def forward():
        with torch.no_grad():
            return call(*inputs)

    if mode == "forward":
        return forward
    leaves = [tensor.detach().requires_grad_() for tensor in inputs]
    if mode == "backward":
        out = call(*leaves)
        grad = upstream(out)
        return lambda: _gradients(out, leaves, grad, retain_graph=True)
    grad = None

    def step():
        nonlocal grad
        out = call(*leaves)
        grad = upstream(out) if grad is None else grad
        gradients = _gradients(out, leaves, grad)
        if work.update:
            work.update(leaves, gradients)
        return gradients

    return step


def upstream(result: Tensor, seed: int = 7) -> Tensor:
    """The gradient that is sent into a result: the same random values for all, rounded to its dtype."""
    # At least channels_last results get what a layer behind them would send: the same layout.
    return torch.empty_like(result).copy_(_random(result.shape, result.dtype, result.device, seed))


@functools.lru_cache(maxsize=1)
def _random(shape: torch.Size, dtype: torch.dtype, device: torch.device, seed: int) -> Tensor:
    """Drawn once for all calls of a case, on its device: a CPU takes most of a second for 50 million values."""
    return torch.randn(shape, generator=torch.Generator(device).manual_seed(seed), device=device).to(dtype)


class CorrectnessCheck:
    """Holds the truth of a work and the errors that its reference makes in the work's own dtype."""

    def __init__(self, work: Work, modes: Iterable[str]):
        self.work = work
        self.known: dict[tuple[int, bool], list[Accuracy]] = {}
        reference = work.implementations[work.reference]
        gradients = any(mode != "forward" for mode in modes)
        self.own = self.values(reference, work.inputs, gradients)
        if work.inputs:
            exact_inputs = [tensor.detach().double() for tensor in work.inputs]
            self.exact = self.values(reference, exact_inputs, gradients, like=self.own[0])

    def values(
        self, implementation: Implementation, inputs: list[Tensor], gradients: bool, like: Tensor | None = None
    ) -> list[Tensor]:
        """The result and, where asked, the gradient of every input for an upstream rounded to the dtype of `like`."""
        if not gradients:
            with torch.no_grad():
                return [implementation.call(*inputs)]
        leaves = [tensor.detach().requires_grad_() for tensor in inputs]
        out = implementation.call(*leaves)
        grad = upstream(out if like is None else like).to(out.dtype)
        return [out.detach(), *_gradients(out, leaves, grad)]

    def __call__(self, implementation: Implementation, mode: str) -> list[Accuracy]:
        """How right an implementation is: its result (forward, as it is without gradients), or that and all gradients.

        irnet's own implementations run twice, the second time with poisoned memory: what they do not write is NaN.
        """
        gradients = mode != "forward"
        key = id(implementation), gradients
        if key not in self.known:
            judged = self.accuracies(self.values(implementation, self.work.inputs, gradients))
            if not implementation.peer:
                with _poisoned():
                    again = self.accuracies(self.values(implementation, self.work.inputs, gradients))
                judged = [max(pair, key=_excess) for pair in zip(judged, again, strict=True)]
            self.known[key] = judged
        return self.known[key]

    def accuracies(self, got: list[Tensor]) -> list[Accuracy]:
        """The accuracy of a result and, where they are given, of its gradients."""
        if not self.work.inputs:  # nothing is rounded: the result is the reference's or it is wrong
            return [Accuracy(0.0 if torch.equal(got[0], self.own[0]) else float("inf"), 0.0, 1.0)]
        result, *rest = map(accuracy, got, self.exact[: len(got)], self.own[: len(got)])
        slack = self.work.slack
        return [result, *(replace(a, budget=max(a.budget, slack * a.scale)) for a in rest)]


@contextlib.contextmanager
def _poisoned() -> Iterator[None]:
    """PyTorch fills all memory that it hands out uninitialised with NaN."""
    before, fill = torch.get_deterministic_debug_mode(), torch.utils.deterministic.fill_uninitialized_memory
    torch.utils.deterministic.fill_uninitialized_memory = True
    torch.set_deterministic_debug_mode("warn")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # of operators that have no deterministic form
            yield
    finally:
        torch.set_deterministic_debug_mode(before)
        torch.utils.deterministic.fill_uninitialized_memory = fill


def worst(judged: list[Accuracy], mode: str) -> tuple[Accuracy, str]:
    """What a mode answers for: the result (forward), the gradient furthest out (backward), either (step)."""
    named = list(zip(judged, ["result", *(f"gradient {i}" for i in range(len(judged) - 1))], strict=True))
    named = {"forward": named[:1], "backward": named[1:], "step": named}[mode]
    return max(named, key=lambda pair: _excess(pair[0]))


def _excess(judged: Accuracy) -> float:
    """The error as a share of its budget; a NaN is worse than any number."""
    return float("inf") if judged.error != judged.error else judged.error / (judged.budget or 1e-300)


def _examine(work: Work, name: str, mode: str, check: CorrectnessCheck, device: torch.device, figures: dict) -> None:
    """First call, correctness and counts; raises Failure for a wrong result."""
    implementation = work.implementations[name]
    call = mode_call(work, implementation, mode)
    if mode != "backward" and name != work.reference:  # the truth has called the reference before
        start = time.perf_counter()
        call()
        synchronize(device)
        figures["first_call_seconds"] = time.perf_counter() - start
        if name == "triton" or name.startswith("torch.compile"):
            start = time.perf_counter()
            call()
            synchronize(device)
            figures["compile_seconds"] = max(0.0, figures["first_call_seconds"] - (time.perf_counter() - start))
    if implementation.checked:
        judged, what = worst(check(implementation, mode), mode)
        if judged.error != judged.error or judged.error == float("inf"):
            raise Failure(ERROR, f"wrong: the {what} is not finite or not equal")
        order = PEER_ROUNDINGS * torch.finfo(torch.float32).eps * judged.scale if implementation.peer else 0.0
        budget = judged.budget + order
        figures |= {"error": judged.error, "budget": budget, "scale": judged.scale}
        if judged.error > budget:
            raise Failure(ERROR, f"wrong: the {what} is off by {judged.error:.3e}, its budget is {budget:.3e}")
    counted = counts.count(call, device)
    figures |= {name: value for name, value in vars(counted).items() if value is not None}
    if mode == "step":
        leaves = [tensor.detach().requires_grad_() for tensor in work.inputs]
        figures["saved_bytes"] = counts.saved_bytes(lambda: implementation.call(*leaves), leaves)


def _time(
    work: Work,
    racing: list[str],
    mode: str,
    device: torch.device,
    seconds: float,
    results: dict[tuple[str, str], Result],
) -> None:
    """Fill in the samples: on a CPU the implementations take turns, on a GPU one follows the other."""
    if device.type == "cpu":
        calls = {}
        for name in racing:
            try:
                calls[name] = _attempt(functools.partial(_warm, work, work.implementations[name], mode))
            except Failure as failure:
                results[name, mode].fail(failure)
        try:
            samples = _attempt(lambda: timing.interleaved(calls, seconds))
        except Failure as failure:
            for name in calls:
                results[name, mode].fail(failure)
            return
        for name, times in samples.items():
            _keep(results[name, mode], times, "wall")
        return
    sets = timing.input_sets(sum(tensor.nbytes for tensor in work.inputs), device)
    for name in racing:
        try:
            copies = [work.inputs, *([tensor.clone() for tensor in work.inputs] for _ in range(sets - 1))]
            makers = [functools.partial(mode_call, work, work.implementations[name], mode, inputs) for inputs in copies]
            samples, clock = _attempt(functools.partial(timing.on_gpu, makers, seconds))
            _keep(results[name, mode], samples, clock)
        except Failure as failure:
            results[name, mode].fail(failure)
        _release(device)


def _warm(work: Work, implementation: Implementation, mode: str) -> Callable:
    call = mode_call(work, implementation, mode)
    call()
    return call


def _keep(result: Result, samples: list[float], clock: str) -> None:
    result.figures |= {"samples": samples, "percentiles": timing.percentiles(samples), "clock": clock}


def _gradients(out: Tensor, leaves: list[Tensor], grad: Tensor, **options) -> tuple[Tensor, ...]:
    return torch.autograd.grad(out, leaves, grad, allow_unused=True, materialize_grads=True, **options)


def _attempt(action: Callable):
    """The action's value; Failure, with the reason, where it runs out of memory or raises anything else.

    Implementations are other people's programs too: one that fails is a finding, and the others are still measured.
    """
    try:
        return action()
    except Failure:
        raise
    except (torch.OutOfMemoryError, MemoryError) as error:
        raise Failure(OOM, _first_line(error)) from error
    except Exception as error:
        out_of_memory = "can't allocate memory" in str(error) or "out of memory" in str(error)
        reason = _first_line(error) if out_of_memory else f"{type(error).__name__}: {_first_line(error)}"
        raise Failure(OOM if out_of_memory else ERROR, reason) from error


def _first_line(error: Exception) -> str:
    """The first line of what an error says, or the first two where the first only announces the second."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
    return " ".join(lines[: 2 if lines[0].endswith(":") else 1])


def _release(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.empty_cache()
