"""Instructions that CPU code executes, counted by valgrind's callgrind in a process of its own. Judges nothing.

`count` starts one Python under callgrind, which builds the cases, makes every call until it is warm, and only then
switches instrumentation on: with it, importing PyTorch takes 50 seconds in place of 13. A call takes 30 to 200 times
as long as without valgrind, most where code is vectorised.

How exact the counts are: for the same files, .pyc included, they are the same to the last instruction, also on a loaded
machine. They are those of a whole call: Python, PyTorch's dispatch, allocation and the kernels. A change of any Python
file that the process imports, of the jobs or of the environment moves memory, and with it a search in a dictionary or
in a list of free blocks: calls of 3 to 12 million instructions were seen to move by up to 0.4%. The processor that
valgrind shows a program has AVX2 and no AVX-512, whatever the machine has; PyTorch chooses its code accordingly.
"""

import contextlib
import functools
import gc
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from pathlib import Path

import torch

from irnet_kernels.aot.tools import ToolUnavailable

from .case import DTYPES, Job, Setup, Work, cases
from .machine import import_path
from .measure import mode_call

WARM, COUNTED = 10, 3  # calls: Python specialises its code in the first 8; the fewest instructions are reported


def count(jobs: Sequence[Job], files: Sequence[str] = ()) -> dict[Job, int]:
    """Instructions of one call of every job, on one thread, in the case's shape for the gate; without those of calling
    an empty function.

    files  Python files with further cases
    Raises ToolUnavailable where there is no valgrind.
    """
    with counting(jobs, files) as counts:
        return counts()


@contextlib.contextmanager
def counting(jobs: Sequence[Job], files: Sequence[str] = ()) -> Iterator[Callable[[], dict[Job, int]]]:
    """Count while the caller does something else; what is yielded waits for the counts, which are those of `count`.

    Counting that nobody has waited for ends with the context.
    """
    valgrind_version()
    orders = {"jobs": [asdict(job) for job in jobs], "files": [str(Path(file).resolve()) for file in files]}
    temporary = functools.partial(tempfile.TemporaryFile, "w+")
    with tempfile.TemporaryDirectory() as folder, temporary() as given, temporary() as text:
        json.dump(orders, given)
        given.seek(0)
        output = Path(folder) / "callgrind.out"
        command = ["valgrind", "-q", "--tool=callgrind", "--instr-atstart=no", "--collect-atstart=no"]
        command += ["--combine-dumps=yes", f"--callgrind-out-file={output}"]
        command += [sys.executable, "-m", __spec__.name]
        streams = {"stdin": given, "stdout": text, "stderr": subprocess.STDOUT}
        process = subprocess.Popen(command, env=_environment(), cwd="/", **streams)

        def counts() -> dict[Job, int]:
            code = process.wait()
            text.seek(0)
            said = text.read()
            if code:
                raise RuntimeError(f"{' '.join(command)} ended with {code}:\n{said}")
            return _fewest(jobs, output.read_text(), said)

        try:
            yield counts
        finally:
            process.kill()
            process.wait()


def _fewest(jobs: Sequence[Job], output: str, said: str) -> dict[Job, int]:
    """The counts of jobs in callgrind's output; `said` is what the process has printed."""
    totals = [int(total) for total in re.findall(r"^totals: (\d+)$", output, re.MULTILINE)]
    totals.pop()  # what was collected after the last call: nothing
    if len(totals) != COUNTED * (1 + len(jobs)):
        raise RuntimeError(f"callgrind wrote {len(totals)} counts for {len(jobs)} jobs:\n{said}")
    empty, *fewest = (min(totals[i : i + COUNTED]) for i in range(0, len(totals), COUNTED))
    return {job: number - empty for job, number in zip(jobs, fewest, strict=True)}


def valgrind_version() -> str:
    """The version of valgrind, such as "valgrind 3.19.0"; raises ToolUnavailable where it cannot count."""
    if not torch._C._valgrind_supported_platform():
        raise ToolUnavailable("this build of PyTorch does not support valgrind on this platform")
    for program in ("valgrind", "callgrind_control"):
        if not shutil.which(program):
            raise ToolUnavailable(f"there is no {program} (apt install valgrind)")
    said = subprocess.run(["valgrind", "--version"], capture_output=True, text=True, check=True).stdout
    return said.strip().replace("-", " ", 1)


def _environment() -> dict[str, str]:
    """The same for every caller: its size and its strings, through hashes and addresses, show in the counts."""
    kept = ("PATH", "HOME", "TMPDIR", "LD_LIBRARY_PATH", "CUDA_HOME")
    variables = {name: value for name, value in os.environ.items() if name in kept or name.startswith("IRNET_")}
    threads = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    return variables | {"PYTHONPATH": import_path(), "PYTHONHASHSEED": "0"} | threads


# In the process under callgrind


def _main(orders: dict) -> None:
    torch.set_num_threads(1)
    known = {case.name: case for case in cases(files=orders["files"])}
    works: dict[tuple[str, str], Work] = {}
    calls: list[Callable] = [lambda: None]
    for job in (Job(**values) for values in orders["jobs"]):
        key = (job.case, job.dtype)
        if key not in works:
            case = known[job.case]
            works[key] = case.build(Setup(case.shapes["gate"], DTYPES[job.dtype], torch.device("cpu")))
        calls.append(mode_call(works[key], works[key].implementations[job.implementation], job.mode))
    for call in calls:
        for _ in range(WARM):
            call()
    gc.collect()
    gc.disable()
    _instrument()
    for call in calls:
        call()
        for _ in range(COUNTED):
            torch._C._valgrind_toggle()
            call()
            torch._C._valgrind_toggle_and_dump_stats()


def _instrument() -> None:
    """Switch callgrind's instrumentation on: importing PyTorch with it takes a minute."""
    control = subprocess.Popen(
        ["callgrind_control", "--instr=on", str(os.getpid())],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    while control.poll() is None:
        pass  # valgrind listens only while its program runs; to wake it would take the right to trace processes
    said = control.stdout.read()
    if control.returncode or "OK" not in said:
        raise RuntimeError(f"callgrind_control ended with {control.returncode}: {said}")


if __name__ == "__main__":
    _main(json.load(sys.stdin))
