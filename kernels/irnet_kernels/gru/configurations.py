"""What sizes of blocks conv_gru's Triton kernels are launched with: shipped ones, and those that tune.py has found for
a GPU. Triton is not imported, nothing is timed here.
"""

import functools
import json
import os
import warnings
from pathlib import Path

import torch

Table = dict[str, dict[str, dict[str, dict[str, int]]]]  # GPU -> kernel -> dtype -> configuration


def sizes(m: int, n: int, k: int, warps: int, stages: int, descriptors: int = 0) -> dict[str, int]:
    """Of a product of [m, k] and [k, n] blocks, and how a program is compiled.

    descriptors  1: operands of 16 bits come through tensor descriptors, that is a Hopper GPU's copy engine; 0: each
                 thread copies its part
    """
    blocks = {"BLOCK_M": m, "BLOCK_N": n, "BLOCK_K": k, "DESCRIPTORS": descriptors}
    return blocks | {"num_warps": warps, "num_stages": stages}


# What is launched, by the bytes of the dtype; a kernel of wide gates is another one. Nothing is tuned when an operator
# runs: the same call gives the same bits. `tune` finds better ones for one GPU. On no GPU do these take more registers
# than there are, which larger tiles do after the product, for all that is read and written then.
# The tiles of 16 bits take 144 KiB of shared memory on sm_90. On sm_80, sm_86, sm_89 and sm_120 Triton keeps one stage
# less there, 96 KiB. The last three give a block 99 KiB: neither one stage more nor a larger tile would be launched.
TILES = {2: sizes(128, 256, 64, 8, 3), 4: sizes(64, 64, 32, 4, 3)}
ROWS = {
    2: {"BLOCK_M": 32, "BLOCK_K": 128, "num_warps": 4, "num_stages": 1},
    4: {"BLOCK_M": 16, "BLOCK_K": 128, "num_warps": 4, "num_stages": 1},
}
CONFIGURATIONS = {
    "conv_gru_gates_forward_kernel": {
        2: {"BLOCK_K": 64, "num_warps": 4, "num_stages": 4},
        4: {"BLOCK_K": 32, "num_warps": 4, "num_stages": 3},
    },
    "conv_gru_wide_gates_forward_kernel": TILES,
    "conv_gru_forward_kernel": TILES,
    "conv_gru_forward_kernel wide": TILES,
    "conv_gru_update_backward_kernel": ROWS,
    "conv_gru_update_backward_kernel wide": ROWS,
    "conv_gru_product_backward_kernel": TILES,
    "conv_gru_reset_backward_kernel": ROWS,
    "conv_gru_reset_backward_kernel wide": ROWS,
    "conv_gru_inputs_backward_kernel": TILES,
    "conv_gru_inputs_backward_kernel wide": TILES,
    "conv_gru_state_backward_kernel": {2: sizes(64, 128, 32, 4, 2), 4: sizes(32, 32, 32, 4, 2)},
    "conv_gru_state_backward_kernel wide": TILES,
    "conv_gru_weight_backward_kernel": {2: TILES[2], 4: sizes(64, 64, 32, 4, 2)},
}
FLOAT64 = sizes(16, 16, 16, 4, 1)  # products are summed without matrix units
DTYPES = {"float32": 4, "bfloat16": 2, "float16": 2}  # that can be tuned


def tuned_file(gpu: str) -> Path:
    """Where `tune` writes."""
    cache = os.path.expanduser(os.environ.get("XDG_CACHE_HOME") or "~/.cache")  # "~" itself without a home
    return Path(cache) / "irnet" / f"conv_gru-{gpu.replace('/', '-')}.json"


def read(file: Path) -> Table:
    """GPU -> kernel -> dtype -> configuration. Raises ValueError, which names the file, for anything else."""
    try:
        table: Table = json.loads(file.read_text())
        entries = [
            (kernel, dtype, entry)
            for kernels in table.values()
            for kernel, dtypes in kernels.items()
            for dtype, entry in dtypes.items()
        ]
        for kernel, dtype, entry in entries:
            sizes = CONFIGURATIONS[kernel][DTYPES[dtype]]
            if entry.keys() != sizes.keys():
                raise ValueError(f"{kernel} wants {', '.join(sizes)}, got {', '.join(entry)}")
            for name, size in entry.items():
                powers = [2**i for i in range(20)]
                allowed = {"DESCRIPTORS": (0, 1), "num_stages": range(1, 20)}.get(name, powers)
                if type(size) is not int or size not in allowed:
                    raise ValueError(f"{kernel}: {name} cannot be {size!r}")
    except KeyError as unknown:
        raise ValueError(f"{file}: there is no {unknown} to configure") from None
    except (AttributeError, OSError, ValueError) as wrong:
        raise ValueError(f"{file}: {wrong}") from None
    return table


@functools.cache
def tuned(gpu: str) -> dict[tuple[str, str], dict[str, int]]:
    """Configurations for a GPU by (kernel, dtype): first those in files that IRNET_TUNED names, then `tune`'s.

    Raises ValueError for a named file that does not fit; one that `tune` has left, for another version, is left out.
    """
    tables, own = (
        [read(Path(name)) for name in os.environ.get("IRNET_TUNED", "").split(os.pathsep) if name],
        tuned_file(gpu),
    )
    if own.is_file():
        try:
            tables.append(read(own))
        except ValueError as wrong:
            warnings.warn(f"{wrong}; not used: write it again, python -m irnet_kernels.gru.tune", stacklevel=2)
    entries: dict[tuple[str, str], dict[str, int]] = {}
    for table in reversed(tables):
        for kernel, dtypes in table.get(gpu, {}).items():
            entries |= {(kernel, dtype): entry for dtype, entry in dtypes.items()}
    return entries


@functools.cache
def gpu_of(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type


def configuration(name: str, dtype: torch.dtype, device: torch.device) -> dict[str, int]:
    """A kernel's sizes for maps in a dtype on a device: tuned ones if there are, else those that are shipped."""
    if dtype == torch.float64:
        return FLOAT64
    short = str(dtype).removeprefix("torch.")
    return tuned(gpu_of(device)).get((name, short)) or CONFIGURATIONS[name][DTYPES[short]]
