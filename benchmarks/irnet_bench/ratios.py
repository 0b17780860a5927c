"""Times of calls over those of the peer in the same case, each take in a process of its own. Judges nothing.

Where memory lies, and with it how well caches serve a call, is settled when a process allocates it: takes within one
process agree, while takes of the same code in different processes of a quiet machine were up to a third apart where a
call does little but move memory (paste_mean), and a twelfth where it does not (conv_gru).
"""

import functools
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path

import torch

from irnet_kernels.numerics import full_float32

from . import timing
from .case import DTYPES, Job, Setup, Work, cases
from .machine import import_path
from .measure import mode_call

SECONDS, LEAST, MOST = 0.5, 6, 200  # of a call: seconds of samples, unless these are fewer or more


def take(jobs: Sequence[Job], device: torch.device, files: Sequence[str] = ()) -> dict[Job, float]:
    """One take of every job: its least time over the least of the case's baseline, in the case's shape for the device.

    files  Python files with further cases
    On a CPU it is processor time of one thread.
    """
    orders = {
        "jobs": [asdict(job) for job in jobs],
        "files": [str(Path(file).resolve()) for file in files],
        "device": str(device),
    }
    command = [sys.executable, "-m", __spec__.name]
    path = os.pathsep.join([import_path(), os.environ.get("PYTHONPATH", "")])  # further cases may import from there
    environment = os.environ | {"PYTHONPATH": path}
    process = subprocess.run(command, input=json.dumps(orders), capture_output=True, text=True, env=environment)
    if process.returncode:
        raise RuntimeError(f"{' '.join(command)} ended with {process.returncode}:\n{process.stderr}")
    return dict(zip(jobs, json.loads(process.stdout.splitlines()[-1]), strict=True))


# In the process of a take


def _main(orders: dict) -> list[float]:
    torch.set_num_threads(1)
    timing.keep_freed_memory()
    device = torch.device(orders["device"])
    known = {case.name: case for case in cases(files=orders["files"])}

    @functools.lru_cache(1)  # a case's jobs follow one another
    def work(name: str, dtype: str) -> Work:
        return known[name].build(Setup(known[name].shapes[device.type], DTYPES[dtype], device))

    ratios = []
    with full_float32(deterministic=True):
        for job in (Job(**values) for values in orders["jobs"]):
            built = work(job.case, job.dtype)
            both = [built.implementations[name] for name in (job.implementation, built.baseline)]
            own, peer = _least_seconds([functools.partial(mode_call, built, one, job.mode) for one in both], device)
            ratios.append(own / peer)
    return ratios


def _least_seconds(makers: list[Callable], device: torch.device) -> list[float]:
    """The least time of each call; the calls take turns, so that load hits all of them."""
    if device.type == "cuda":
        return [min(timing.on_gpu([make], seconds=0.2)[0]) for make in makers]
    calls = [make() for make in makers]
    for call in calls:
        call()
    samples = timing.interleaved(dict(enumerate(calls)), SECONDS, LEAST, MOST, clock=time.process_time)
    return [min(samples[i]) for i in range(len(calls))]


if __name__ == "__main__":
    print(json.dumps(_main(json.load(sys.stdin))))
