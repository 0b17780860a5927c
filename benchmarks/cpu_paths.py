"""Times what the C++ kernels let the processor decide, each way, beside the peer: `python benchmarks/cpu_paths.py`.

The least and the median time of calls that take turns, and the least as part of the peer's. What the processor decided
is marked. To be run once on every new kind of processor; `irnet bench kernels` checks the results, too.
"""

import argparse
import statistics
from collections.abc import Callable
from functools import partial

import torch

from irnet_bench.case import Case, Setup, cases
from irnet_bench.measure import mode_call
from irnet_bench.timing import interleaved, keep_freed_memory
from irnet_kernels import extension

CPU = torch.device("cpu")
CHOICES = {
    "crop_resize": ("streaming_stores", torch.float32),
    "paste_mean": ("streaming_stores", torch.float32),
    "conv_gru": ("gates_by_onednn", torch.bfloat16),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--filter", default="", help="only operators whose name contains this")
    parser.add_argument("--mode", nargs="+", default=["forward", "backward"], choices=["forward", "backward", "step"])
    parser.add_argument("--seconds", type=float, default=0.5, help="for each way of an operator")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    keep_freed_memory()
    for case in cases("kernels"):
        for mode in args.mode if case.name in CHOICES and args.filter in case.name else []:
            compare(case, mode, args.seconds)


def compare(case: Case, mode: str, seconds: float) -> None:
    native, (path, dtype) = extension.native(), CHOICES[case.name]
    chosen = native.cpu_path(path)
    work = case.build(Setup(case.shapes["cpu"], dtype, CPU))
    call, peer = (mode_call(work, work.implementations[name], mode) for name in ("cpp", work.baseline))

    def on_path(enabled: bool) -> None:
        native.set_cpu_path(path, enabled)
        call()

    calls: dict[str, Callable[[], object]] = {
        f"{path} {'on' if enabled else 'off'}{' (chosen)' if enabled == chosen else ''}": partial(on_path, enabled)
        for enabled in (True, False)
    }
    calls[work.baseline] = peer
    result = call()
    if isinstance(result, torch.Tensor):
        calls["copy of the result"] = partial(torch.empty_like(result).copy_, result)
    if case.name == "conv_gru" and mode == "forward":  # nearly all of it: what is left for everything else
        calls |= convolutions(*work.inputs[:4])
    try:
        samples = interleaved(calls, seconds)
    finally:
        native.set_cpu_path(path, chosen)
    for name, times in samples.items():
        least = min(times)
        print(
            f"{case.name} {mode} {str(dtype).removeprefix('torch.')}: {name}: least {least * 1e3:.3f} ms, "
            f"median {statistics.median(times) * 1e3:.3f}, {min(samples[work.baseline]) / least:.2f} x {work.baseline}",
            flush=True,
        )


def convolutions(x: torch.Tensor, h: torch.Tensor, new_x: torch.Tensor, new_h: torch.Tensor) -> dict:
    """The candidate's convolution, as conv_gru makes it in bfloat16 and as plain PyTorch does."""
    both, weights = torch.cat([x, h], 1).detach(), torch.cat([new_x, new_h], 1).detach()

    def halves() -> None:
        for patches, kernels in ((x, new_x), (h, new_h)):
            torch.conv2d(patches.detach(), kernels.detach(), padding=1)

    return {
        "convolution over [x | h]": partial(torch.conv2d, both, weights, padding=1),
        "two convolutions": halves,
    }


if __name__ == "__main__":
    main()
