"""Finds the fastest sizes of blocks of conv_gru's Triton kernels on one GPU, and writes the file that configurations.py
reads:

    python -m irnet_kernels.gru.tune
"""

import contextlib
import functools
import json
from pathlib import Path

import torch
import triton

from . import configurations
from . import triton as launchers
from .configurations import sizes

CANDIDATES = {
    2: [
        *(sizes(*tile, stages) for tile in ((128, 256, 64, 8), (256, 128, 64, 8)) for stages in (3, 4)),
        *(sizes(128, 128, 64, warps, stages) for warps in (4, 8) for stages in (3, 4)),
        *(sizes(*tile, 4) for tile in ((128, 128, 32, 4), (64, 256, 32, 4), (64, 128, 64, 4))),
    ],
    4: [
        *(sizes(*tile, stages) for tile in ((128, 128, 32, 8), (64, 64, 32, 4), (64, 128, 32, 4)) for stages in (2, 3)),
        *(sizes(*tile, 3) for tile in ((128, 64, 16, 4), (128, 128, 16, 8))),
    ],
}


def tune(
    regions: int = 2048,
    channels: int = 512,
    size: int = 7,
    dtype: torch.dtype = torch.bfloat16,
    file: Path | None = None,
    device: str = "cuda",
) -> Path:
    """Time CANDIDATES for every kernel that multiplies matrices, on the current GPU, and keep the fastest in a file.

    The whole operator is timed while one kernel after the other tries its candidates. This process goes on with what
    was found, and others of the same user find the file, which is returned.
    """
    gpu, short = configurations.gpu_of(torch.device(device)), str(dtype).removeprefix("torch.")
    file = Path(file or configurations.tuned_file(gpu))
    table = configurations.read(file) if file.is_file() else {}
    chosen = configurations.tuned(gpu)
    for gates in (1, channels):
        shapes = [(regions, channels, size, size)] * 3
        shapes += [(outputs, channels, 3, 3) for outputs in (channels, channels, gates, gates, gates, gates)]
        shapes += [(channels,), (gates,), (gates,)]
        grad, x, h, *weights = (torch.randn(shape, dtype=dtype, device=device) / 64 for shape in shapes)
        grad, x, h = (t.contiguous(memory_format=torch.channels_last) for t in (grad, x, h))
        forward = functools.partial(launchers.conv_gru, x, h, weights)
        with torch.cuda.device_of(x):
            backward = functools.partial(launchers.conv_gru_backward, grad, x, h, weights, *forward()[1:])
        for name, shipped in configurations.CONFIGURATIONS.items():
            if "BLOCK_N" not in shipped[2] or ("wide" in name) != (gates > 1):
                continue
            timed, before = [], chosen.get((name, short), shipped[dtype.itemsize])
            try:
                for candidate in CANDIDATES[dtype.itemsize]:
                    chosen[name, short] = candidate
                    with contextlib.suppress(triton.OutOfResources):
                        run = backward if "backward" in name else forward
                        with torch.cuda.device_of(x):
                            timed.append((triton.testing.do_bench(run, return_mode="median"), candidate))
                        print(f"{name} {short} {candidate}: {timed[-1][0]:.3f} ms")
            finally:
                chosen[name, short] = min(timed, key=lambda pair: pair[0])[1] if timed else before
            table.setdefault(gpu, {}).setdefault(name, {})[short] = chosen[name, short]
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(table, indent=1) + "\n")
    return file


if __name__ == "__main__":
    for tuned in (torch.bfloat16, torch.float32):
        print(tune(dtype=tuned))
