"""Finds the fastest sizes of blocks of conv_gru's Triton kernels on one GPU, and writes the file that configurations.py
reads:

    python -m irnet_kernels.gru.tune [--dtype bfloat16] [--gates narrow wide] [--seconds 80] [--file FILE]
    python -m irnet_kernels.gru.tune --compile-only     # fills Triton's cache for sm_90, without a GPU

Candidates are compiled first, by as many processes as there are cores. Then one kernel after the other tries its
candidates, those first in which most time is spent. A candidate that fails is lost, and only that one. The file is
written after every kernel, and beside it, as FILE with the suffix .times.json, what each candidate took or why it is
lost. At the end of --seconds, or when interrupted, it stops with what is there.
"""

import argparse
import concurrent.futures
import contextlib
import functools
import json
import multiprocessing
import os
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import triton

from . import configurations
from . import triton as launchers
from .configurations import sizes

CANDIDATES = {
    2: [
        *(sizes(128, 256, 64, 8, stages, descriptors) for stages in (3, 4) for descriptors in (0, 1)),
        *(sizes(256, 128, 64, 8, stages, descriptors) for stages, descriptors in ((3, 0), (3, 1), (4, 1))),
        *(sizes(128, 128, 64, 8, 4, descriptors) for descriptors in (0, 1)),
        *(sizes(128, 128, 64, 4, 3, descriptors) for descriptors in (0, 1)),
        *(sizes(*tile, 4) for tile in ((128, 128, 32, 4), (64, 256, 32, 4), (64, 128, 64, 4))),
    ],
    4: [
        *(sizes(*tile, stages) for tile in ((128, 128, 32, 8), (64, 64, 32, 4), (64, 128, 32, 4)) for stages in (2, 3)),
        *(sizes(*tile, 3) for tile in ((128, 64, 32, 8), (128, 64, 16, 4), (128, 128, 16, 8))),
    ],
}
# Of narrow gates, then of wide ones; those first in which most time is spent.
KERNELS = {
    "narrow": (
        "conv_gru_forward_kernel",
        "conv_gru_inputs_backward_kernel",
        "conv_gru_product_backward_kernel",
        "conv_gru_weight_backward_kernel",
        "conv_gru_state_backward_kernel",
    ),
    "wide": (
        "conv_gru_wide_gates_forward_kernel",
        "conv_gru_forward_kernel wide",
        "conv_gru_inputs_backward_kernel wide",
        "conv_gru_state_backward_kernel wide",
    ),
}
# How far the result of a candidate may be from that of the shipped configuration, in roundings of the largest value, by
# the bytes of the dtype: only the order of sums of thousands of float32 products differs.
ROUNDINGS = {2: 8, 4: 1024}


def arguments(
    regions: int, channels: int, size: int, gates: int, dtype: torch.dtype, device: str
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, list[torch.Tensor]]:
    """The upstream gradient, x, h and nine weights, random."""
    shapes: list[tuple[int, ...]] = [(regions, channels, size, size)] * 3
    shapes += [(outputs, channels, 3, 3) for outputs in (channels, channels, gates, gates, gates, gates)]
    shapes += [(channels,), (gates,), (gates,)]
    grad, x, h, *weights = (torch.randn(shape, dtype=dtype, device=device) / 64 for shape in shapes)
    grad, x, h = (t.contiguous(memory_format=torch.channels_last) for t in (grad, x, h))
    return grad, x, h, weights


@contextlib.contextmanager
def tried(name: str, dtype: torch.dtype, candidate: dict[str, int], device: torch.device) -> Iterator[None]:
    """Within, a kernel is launched with a candidate's sizes."""
    chosen = configurations.tuned(configurations.gpu_of(device))
    key = name, str(dtype).removeprefix("torch.")
    before = chosen.get(key)
    chosen[key] = candidate
    try:
        yield
    finally:
        del chosen[key]
        if before is not None:
            chosen[key] = before


# Compiling beforehand


def prepare(
    dtypes: list[torch.dtype],
    gates: Sequence[str],
    channels: int,
    size: int,
    capability: int,
    jobs: int,
    seconds: float = float("inf"),
) -> None:
    """Compile all candidates into Triton's cache, in `jobs` processes of which none needs a GPU.

    seconds  after which nothing more is begun; the rest is compiled when it is tried
    """
    work = [(dtype, width, i) for width in gates for dtype in dtypes for i in range(len(CANDIDATES[dtype.itemsize]))]
    context = multiprocessing.get_context("spawn")
    pool = concurrent.futures.ProcessPoolExecutor(min(jobs, len(work)), context, _no_gpu, (capability,))
    try:
        compiled = [pool.submit(_compile, *one, channels, size) for one in work]
        concurrent.futures.wait(compiled, None if seconds == float("inf") else seconds)
    finally:
        pool.shutdown(cancel_futures=True)  # waits for those that run
    for (dtype, width, index), future in zip(work, compiled, strict=True):
        where = f"{width} {dtype} {CANDIDATES[dtype.itemsize][index]}"
        if future.cancelled():
            print(f"{where}: not begun in time", flush=True)
        elif error := future.exception():
            print(f"{where}: {_reason(error)}", flush=True)
        else:
            for name, reason in future.result().items():
                print(f"{name} {where}: {reason}", flush=True)


def _no_gpu(capability: int) -> None:
    from irnet_kernels.aot import driver

    torch.set_num_threads(1)
    driver.install(capability)


def _compile(dtype: torch.dtype, width: str, index: int, channels: int, size: int) -> dict[str, str]:
    """Launch every kernel with one candidate, in a process that launches nothing; the reasons of those that fail."""
    lost: dict[str, str] = {}
    with contextlib.ExitStack() as stack:
        for name in KERNELS[width]:
            stack.enter_context(tried(name, dtype, CANDIDATES[dtype.itemsize][index], torch.device("cpu")))
            function = name.removesuffix(" wide")
            kernel = getattr(launchers, function)
            if not isinstance(kernel, _Attempted):
                setattr(launchers, function, _Attempted(kernel))
                stack.callback(setattr, launchers, function, kernel)
            getattr(launchers, function).lost = lost
        grad, x, h, weights = arguments(1, channels, size, channels if width == "wide" else 1, dtype, "cpu")
        launchers.conv_gru_backward(grad, x, h, weights, *launchers.conv_gru(x, h, weights)[1:])
    return lost


class _Attempted:
    """A kernel whose failure to compile is noted by its name, so that those after it are launched, too."""

    lost: dict[str, str]

    def __init__(self, kernel: Any) -> None:
        self.kernel, self.__name__, self.arg_names = kernel, kernel.__name__, kernel.arg_names

    def __getitem__(self, grid: Any) -> Callable[..., None]:
        def launch(*given: Any, **named: Any) -> None:
            try:
                self.kernel[grid](*given, **named)
            except Exception as error:
                self.lost[self.__name__] = _reason(error)

        return launch


# Timing


@dataclass(frozen=True)
class Deadline:
    """A time of `clock` at which nothing more is begun."""

    end: float = float("inf")
    clock: Callable[[], float] = time.monotonic

    def passed(self) -> bool:
        return self.clock() >= self.end


def tune(
    regions: int = 2048,
    channels: int = 512,
    size: int = 7,
    dtype: torch.dtype = torch.bfloat16,
    file: Path | None = None,
    device: str = "cuda",
    gates: Sequence[str] = ("narrow", "wide"),
    until: Deadline = Deadline(),
) -> Path:
    """Time CANDIDATES for every kernel that multiplies matrices, on the current GPU, and keep the fastest in a file.

    The whole operator is timed while one kernel after the other tries its candidates. This process goes on with what
    was found, and others of the same user find the file, which is returned.

    until  no candidate is begun after it; what is found by then is kept
    Raises RuntimeError where the GPU itself is lost, after which nothing more can be timed.
    """
    gpu_device = torch.device(device)
    gpu, short = configurations.gpu_of(gpu_device), str(dtype).removeprefix("torch.")
    file = Path(file or configurations.tuned_file(gpu))
    table = configurations.read(file) if file.is_file() else {}
    log = file.with_suffix(".times.json")
    times = json.loads(log.read_text()) if log.is_file() else {}
    for width in gates:
        grad, x, h, weights = arguments(regions, channels, size, channels if width == "wide" else 1, dtype, device)
        forward = functools.partial(launchers.conv_gru, x, h, weights)
        with torch.cuda.device_of(x):
            backward = functools.partial(launchers.conv_gru_backward, grad, x, h, weights, *forward()[1:])
        for name in KERNELS[width]:
            shipped = configurations.CONFIGURATIONS[name][dtype.itemsize]
            candidates = [shipped, *(c for c in CANDIDATES[dtype.itemsize] if c != shipped and _serves(c, gpu_device))]
            entries: list[dict[str, Any]] = []
            times.setdefault(gpu, {}).setdefault(name, {})[short] = entries
            try:
                _try_all(name, dtype, candidates, backward if "backward" in name else forward, x, entries, until)
            finally:
                timed = [(entry["ms"], entry["sizes"]) for entry in entries if "ms" in entry]
                if timed:
                    best = min(timed, key=lambda pair: pair[0])[1]
                    configurations.tuned(gpu)[name, short] = best
                    table.setdefault(gpu, {}).setdefault(name, {})[short] = best
                    _write(file, table)
                _write(log, times)
            if until.passed():
                print(f"out of time at {name} {short}: what is found by now stays in {file}", flush=True)
                return file
    if not any("ms" in entry for kernels in times[gpu].values() for entry in kernels.get(short, [])):
        raise RuntimeError(f"nothing could be timed in {short}; the reasons are in {log}")
    return file


def _try_all(
    name: str,
    dtype: torch.dtype,
    candidates: list[dict[str, int]],
    run: Callable[[], Any],
    x: torch.Tensor,
    entries: list[dict[str, Any]],
    until: Deadline,
) -> None:
    """Adds to `entries` what each candidate takes in milliseconds, or why it is lost."""
    expected = None
    for candidate in candidates:
        if until.passed():
            return
        entry: dict[str, Any] = {"sizes": candidate}
        try:
            with tried(name, dtype, candidate, x.device), torch.cuda.device_of(x):
                result = [t for part in run() for t in (part if isinstance(part, list) else [part])]
                expected = expected or result  # the shipped configuration's, the first
                far = max(map(_distance, result, expected))
                if not far <= ROUNDINGS[dtype.itemsize]:
                    raise ArithmeticError(f"wrong by {far:.3g} roundings")
                entry["ms"] = triton.testing.do_bench(run, warmup=10, rep=50, return_mode="median")
        except Exception as error:
            entry["lost"] = _reason(error)
        entries.append(entry)
        print(f"{name} {dtype} {candidate}: {entry.get('lost') or format(entry['ms'], '.3f') + ' ms'}", flush=True)
        if "lost" in entry and x.is_cuda:
            torch.cuda.synchronize()  # raises where no candidate can be tried any more


def _distance(result: torch.Tensor, expected: torch.Tensor) -> float:
    """The largest difference in roundings of the largest value."""
    scale = expected.abs().max().double() * torch.finfo(expected.dtype).eps / 2
    return float((result.double() - expected.double()).abs().max() / scale) if expected.any() or result.any() else 0.0


def _serves(candidate: dict[str, int], device: torch.device) -> bool:
    """Descriptors are for GPUs with a copy engine; on others Triton makes slow loads of them."""
    return not candidate["DESCRIPTORS"] or device.type != "cuda" or torch.cuda.get_device_capability(device) >= (9, 0)


def _reason(error: BaseException) -> str:
    return f"{type(error).__name__}: {str(error).strip()[:300]}"


def _write(file: Path, table: dict[str, Any]) -> None:
    """All of it or nothing, whenever the process ends."""
    file.parent.mkdir(parents=True, exist_ok=True)
    part = file.with_name(f".{file.name}.{os.getpid()}")
    part.write_text(json.dumps(table, indent=1) + "\n")
    part.replace(file)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dtype", nargs="+", choices=configurations.DTYPES, default=["bfloat16", "float32"])
    parser.add_argument("--gates", nargs="+", choices=KERNELS, default=list(KERNELS))
    parser.add_argument("--regions", type=int, default=2048)
    parser.add_argument("--channels", type=int, default=512)
    parser.add_argument("--size", type=int, default=7)
    parser.add_argument("--file", type=Path, help="default: where configurations.py looks")
    parser.add_argument("--seconds", type=float, default=float("inf"), help="of all, compiling included: half at most")
    cores = len(os.sched_getaffinity(0))
    parser.add_argument("--jobs", type=int, default=cores, help="that compile; 0: nothing is compiled beforehand")
    parser.add_argument("--compile-only", action="store_true")
    parser.add_argument("--capability", type=int, help="to compile for; default: the GPU's, 90 where there is none")
    given = parser.parse_args()
    until = Deadline(time.monotonic() + given.seconds)
    dtypes = [getattr(torch, name) for name in given.dtype]
    here = torch.cuda.get_device_capability() if torch.cuda.is_available() else (9, 0)
    capability = given.capability or 10 * here[0] + here[1]
    try:
        if given.jobs:
            seconds = given.seconds if given.compile_only else given.seconds / 2
            prepare(dtypes, given.gates, given.channels, given.size, capability, given.jobs, seconds)
            print("candidates are compiled", flush=True)
        for dtype in [] if given.compile_only else dtypes:
            shape = given.regions, given.channels, given.size
            print(tune(*shape, dtype, given.file, gates=given.gates, until=until), flush=True)
    except KeyboardInterrupt:
        print("interrupted; what was found is written", flush=True)
        return 130
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
