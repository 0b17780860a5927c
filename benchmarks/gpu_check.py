"""All that needs a GPU, in one command of under eight minutes: build, tests, fuzzer, sanitizer, gate, benchmarks.

    make gpu-check

Needs no network and installs nothing: it runs from the source tree with the Python it is started by. Each step has a
time limit and a log in runs/gpu-check. Records go to benchmarks/results/<GPU>.jsonl, the gate's new figures to
benchmarks/baseline.json, both to be committed. Exits with 1 where a step failed. `--device cpu` tries the steps
that work without a GPU.
"""

import argparse
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks/results"
TOYS = "tests/bench/toy/toy_cases.py"
FUZZER = ["tests/kernels/test_roi_fuzz.py", "tests/kernels/test_graph_fuzz.py"]
# In interpreters and emulators, ahead of time, per instruction set: what any CPU can test has been tested there.
ON_GPU = "not (interpreted or roi_cuda or for_every_target or instruction_set)"
# Without PyTorch's cache every tensor is an allocation of its own, so that a step outside it is seen.
UNCACHED = {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}


@dataclass(frozen=True)
class Step:
    """One command, how long it may take, and its environment; `absent` says why it cannot run here."""

    name: str
    command: list[str]
    seconds: float
    absent: str = ""
    env: Mapping[str, str] = field(default_factory=dict)


def steps(device: str, results: Path, capability: str = "", python: str = sys.executable) -> list[Step]:
    """What is checked, in this order; the limits add up to less than eight minutes.

    capability  the GPU's, "9.0": the extension is built for it alone
    """
    kind = "cpu" if device == "cpu" else "cuda"
    build = {"IRNET_REQUIRE_EXT": "1"}
    if kind == "cuda":
        build |= {"FORCE_CUDA": "1", "TORCH_CUDA_ARCH_LIST": capability}
    irnet = [python, "-m", "irnet.cli"]
    tests = [python, "-m", "pytest", "-q"]
    exercise = [python, "-m", "irnet.bench.exercise", "--device", device, "--dtype", "float32", "bfloat16"]
    odd = [*tests, *FUZZER, "-k", f"{kind} and not reference and (random or ptr)"]
    homes = [os.environ.get("CUDA_HOME", "/usr/local/cuda"), "/usr/local/cuda"]
    places = os.pathsep.join([os.environ.get("PATH", ""), *(f"{home}/bin" for home in homes)])
    sanitizer = shutil.which("compute-sanitizer", path=places)
    absent = "" if sanitizer and device != "cpu" else "needs a GPU and compute-sanitizer (part of the CUDA toolkit)"

    def sanitized(tool: str, command: list[str]) -> list[str]:
        # PyTorch calls the driver for things that may be absent: what it is answered is no error.
        tool = [sanitizer or "compute-sanitizer", "--tool", tool, "--report-api-errors", "no", "--error-exitcode", "9"]
        return [*tool, *command]

    measure = ["--device", device, "--output", str(results), "--seconds", "0.2", "--without", "torch.compile"]
    report = [*irnet, "bench", "report", *sorted(map(str, {*RESULTS.glob("*.jsonl"), results}))]
    report += ["--html", str(RESULTS / "report.html"), "--markdown", str(RESULTS / "benchmarks.md")]
    return [
        Step("build", [python, "setup.py", "build_ext", "--inplace"], 50, env=build),
        Step("info", [*irnet, "info"], 10),
        Step("tests of kernels", [*tests, "tests/kernels", *(f"--ignore={file}" for file in FUZZER), "-k", ON_GPU], 85),
        Step("fuzzer", [*tests, *FUZZER, "-k", kind], 60),
        Step("tests of measurement", [*tests, "tests/bench/test_measure.py"], 20),
        Step("memcheck", sanitized("memcheck", exercise), 30, absent, UNCACHED),
        Step("memcheck of the fuzzer", sanitized("memcheck", odd), 40, absent, UNCACHED | {"IRNET_FUZZ": "30"}),
        Step("racecheck", sanitized("racecheck", exercise), 30, absent),
        Step("gate", [*irnet, "bench", "gate", "--add", "--device", device, "--cases", TOYS], 45),
        Step("benchmarks of kernels", [*irnet, "bench", "kernels", "--fresh", *measure], 60),
        Step("benchmarks of the model", [*irnet, "bench", "model", *measure], 20),
        Step("benchmarks of training", [*irnet, "bench", "training", *measure], 15),
        Step("report", [*report, "--readme", "README.md"], 10),
    ]


def run(step: Step, log: Path) -> tuple[str, float]:
    """How a step came out, in a word or two, and its seconds. All it prints goes to the log."""
    if step.absent:
        return f"skipped: {step.absent}", 0.0
    env = os.environ | {
        "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "kernels"), os.environ.get("PYTHONPATH", "")]),
        "PYTHONUNBUFFERED": "1",
        **step.env,
    }
    start = time.monotonic()
    with open(log, "wb") as file:
        words = [*(f"{name}={value}" for name, value in step.env.items()), *step.command]
        file.write(f"{shlex.join(words)}\n".encode())
        file.flush()
        process = subprocess.Popen(
            step.command,
            cwd=ROOT,
            env=env,
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            code = process.wait(step.seconds)
            outcome = "passed" if code == 0 else f"FAILED (exit code {code})"
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            outcome = f"FAILED (longer than {step.seconds:.0f} s)"
    return outcome, time.monotonic() - start


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--results", type=Path, help="the file of records; benchmarks/results/<GPU>.jsonl if not given")
    options = parser.parse_args()

    import torch  # after the options, so that --help is quick

    if options.device != "cpu" and not torch.cuda.is_available():
        print("there is no GPU that torch can use; --device cpu tries the steps that need none", file=sys.stderr)
        return 2
    name, capability = "cpu", ""
    if options.device != "cpu":
        name = torch.cuda.get_device_name(options.device)
        capability = "{}.{}".format(*torch.cuda.get_device_capability(options.device))
    slug = re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")
    results = options.results or RESULTS / f"{slug}.jsonl"
    logs = ROOT / "runs/gpu-check"
    logs.mkdir(parents=True, exist_ok=True)

    rows = []
    for step in steps(options.device, results, capability):
        log = logs / f"{step.name.replace(' ', '-')}.log"
        print(f"{step.name} ...", flush=True)
        outcome, seconds = run(step, log)
        rows.append((step.name, outcome, seconds))
        if outcome.startswith("FAILED"):
            print(*log.read_text(errors="replace").splitlines()[-25:], sep="\n")
    width = max(len(name) for name, *_ in rows)
    print(f"\n{name}, torch {torch.__version__}, Python {sys.version.split()[0]}; logs in {logs.relative_to(ROOT)}")
    for name, outcome, seconds in rows:
        print(f"{name:{width}}  {seconds:5.0f} s  {outcome}")
    print(f"{'all':{width}}  {sum(seconds for *_, seconds in rows):5.0f} s")
    return 1 if any(outcome.startswith("FAILED") for _, outcome, _ in rows) else 0


if __name__ == "__main__":
    sys.exit(main())
