"""Clocks: how calls are timed on a CPU and on a GPU. Knows no case, checks no result."""

import contextlib
import ctypes
import gc
import itertools
import logging
import time
from collections.abc import Callable, Iterator, Mapping, Sequence

import torch

Call = Callable[[], object]
SHORTEST = 1e-3  # seconds: shorter calls are repeated within one sample, so that the clock's own cost vanishes
LONG = 50e-3  # seconds: longer calls do not feel what the call before them left of caches and of sleeping threads
log = logging.getLogger("irnet")


def percentiles(samples: Sequence[float]) -> dict[str, float]:
    """{"20", "50", "80"} of the samples, interpolated linearly."""
    values = torch.tensor(samples, dtype=torch.float64).quantile(torch.tensor([0.2, 0.5, 0.8], dtype=torch.float64))
    return dict(zip(("20", "50", "80"), values.tolist(), strict=True))


def interleaved(
    calls: Mapping[str, Call],
    seconds: float,
    least: int = 6,
    most: int = 100,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, list[float]]:
    """Seconds of a call, `least` to `most` samples of each: they take turns, so that drift hits all alike.

    seconds  what the samples of each implementation may take in all, once it has its `least` ones
    Every call must have been made before: nothing here is a warm-up. But a call that is not LONG is made once, untimed,
    before each sample: else it would pay for its neighbour, after which caches are cold and worker threads asleep.
    """
    estimates = {name: _estimate(call, clock) for name, call in calls.items()}
    repeats = {name: max(1, min(1000, round(SHORTEST / max(estimate, 1e-9)))) for name, estimate in estimates.items()}
    samples: dict[str, list[float]] = {name: [] for name in calls}
    spent = dict.fromkeys(calls, 0.0)
    waiting = dict(calls)
    with _no_collection():
        while waiting:
            for name, call in list(waiting.items()):
                if estimates[name] < LONG:
                    call()
                start = clock()
                for _ in range(repeats[name]):
                    call()
                elapsed = clock() - start
                samples[name].append(elapsed / repeats[name])
                spent[name] += elapsed
                count = len(samples[name])
                if count >= most or (count >= least and spent[name] >= seconds):
                    del waiting[name]
    return samples


def on_gpu(
    makers: Sequence[Callable[[], Call]], seconds: float, least: int = 10, most: int = 100
) -> tuple[list[float], str]:
    """Seconds of a call on the GPU, and how they were taken: "graph" or "events".

    makers  make the same call on different inputs, together larger than the cache if they can be; the calls take
            turns. They are made on the stream that runs them, to which autograd ties a backward pass.
    Replays of a CUDA graph of all calls are timed where it can be captured: what the GPU needs, without the host. Else
    events around each call are, which includes waiting for the host.
    """
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        calls = [make() for make in makers]
        for call in calls:
            call()
        stream.synchronize()
        graph = _captured(calls, stream)
        turns = [graph.replay] if graph else list(calls)
        each = len(calls) if graph else 1
        estimate = events(turns, 1, each)[0]
        count = min(max(least, int(seconds / max(estimate * each, 1e-6))), most)
        samples = events(turns, count, each)
    torch.cuda.current_stream().wait_stream(stream)
    return samples, "graph" if graph else "events"


def keep_freed_memory() -> None:
    """From now on glibc keeps what this process frees, in place of new pages on the next call of the same size.

    Whether a result of some megabytes is made of new pages depends on what has run before, and costs as much as a call.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)  # other C libraries have none
    if mallopt:
        mallopt(-4, 0)  # M_MMAP_MAX: nothing is mapped by itself
        mallopt(-1, 2**31 - 1)  # M_TRIM_THRESHOLD: nothing is given back


def input_sets(size: int, device: torch.device) -> int:
    """How many copies of inputs of `size` bytes lie well beyond the GPU's cache: 1 on a CPU, at most 16."""
    if device.type != "cuda":
        return 1
    cache = torch.cuda.get_device_properties(device).L2_cache_size
    return max(1, min(16, -(-2 * cache // max(size, 1))))


def events(turns: Sequence[Call], count: int, each: int = 1) -> list[float]:
    """Seconds on the GPU of `count` turns, each of which makes `each` calls."""
    marks = [(torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)) for _ in range(count)]
    for (start, end), call in zip(marks, itertools.cycle(turns)):
        start.record()
        call()
        end.record()
    torch.cuda.synchronize()
    return [start.elapsed_time(end) / 1e3 / each for start, end in marks]


def _captured(calls: Sequence[Call], stream: torch.cuda.Stream) -> "torch.cuda.CUDAGraph | None":
    """A graph of all calls; None where one of them does what no graph can, such as waiting for the GPU."""
    mode = torch.cuda.get_sync_debug_mode()
    torch.cuda.set_sync_debug_mode("error")
    try:
        calls[0]()
    except RuntimeError as error:
        if "synchroniz" not in str(error):
            raise
        log.debug("not captured: %s", error)
        return None
    finally:
        torch.cuda.set_sync_debug_mode(mode)
    graph = torch.cuda.CUDAGraph()
    try:
        with torch.cuda.graph(graph, stream=stream):
            for call in calls:
                call()
    except torch.OutOfMemoryError:
        raise
    except RuntimeError as error:
        log.info("timed by events, not by a CUDA graph: %s", str(error).splitlines()[0])
        torch.cuda.synchronize()
        return None
    return graph


def _estimate(call: Call, clock: Callable[[], float]) -> float:
    """Seconds of a call that follows itself."""
    call()
    start = clock()
    call()
    return clock() - start


@contextlib.contextmanager
def _no_collection() -> Iterator[None]:
    """Garbage is collected before and after, not within a sample."""
    gc.collect()
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()
