"""The first minutes on a GPU: two calls of under six minutes, each of steps that can be run one by one.

    python3 benchmarks/gpu_check.py --out FOLDER [--call 1|2] [--only STEP ...] [--device cpu]

Needs no network and installs nothing. What `make gpu-prepare` has left in build/gpu (a built extension, a warm Triton
cache) is taken, else made. Everything is written to FOLDER as it comes, at most eight files: summary.md, results.tar.gz
with the log of every finished step, current.log of the running one, records.jsonl, baseline.json, tuned.json and
tuned.times.json, failed.txt. A step over its limit is interrupted, given a few seconds, then killed. Exits with 1 where
a step failed.
"""

import argparse
import os
import resource
import shlex
import shutil
import signal
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = [str(ROOT / folder) for folder in ("", "kernels", "benchmarks")]
sys.path.insert(0, str(ROOT / "benchmarks"))
import gpu_prepare  # noqa: E402

BUDGETS = {1: 350.0, 2: 280.0}  # seconds of a call, all its steps together
GRACE = 5.0  # seconds after its limit that an interrupted step has for what it knows
WORKERS = 12
# One launch each of what takes the time of a training step.
PROFILED = "crop_resize|paste_mean|conv_gru_forward|conv_gru_inputs_backward|propagate_regions|segment_matmul"
SECTIONS = ("SpeedOfLight", "Occupancy", "MemoryWorkloadAnalysis")
# Without PyTorch's cache every tensor is an allocation of its own, so that an access outside it is seen.
UNCACHED = {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}


@dataclass(frozen=True)
class Step:
    """One command, how long it may take, and its environment.

    absent  why it cannot run here
    fatal   nothing after it is worth the time if it fails
    """

    name: str
    command: Sequence[str]
    seconds: float
    absent: str = ""
    fatal: bool = False
    env: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Outcome:
    """How a step ended: a word or two, its seconds, those of all processors together, and its limit."""

    name: str
    words: str
    seconds: float
    processor: float
    limit: float

    @property
    def failed(self) -> bool:
        return self.words.startswith("FAILED")


def steps(device: str, out: Path, python: str = sys.executable) -> dict[int, list[Step]]:
    """The steps of each call, the most important first. A call's time may end before its steps do."""
    cpu = device == "cpu"
    irnet, bench = [python, "-m", "irnet.cli"], [python, "-m", "irnet.cli", "bench"]
    on = ["--device", device]
    measure = [*on, "--output", str(out / "records.jsonl"), "--seconds", "0.2", "--without", "torch.compile"]
    bf16, fp32 = ["--dtype", "bfloat16"], ["--dtype", "float32"]
    exercise, both = [python, "-m", "irnet_bench.exercise", *on], ["--dtype", "float32", "bfloat16"]
    tests = [python, "-m", "pytest", "-q", "-rf", *_parallel(), "--failures", str(out / "failed.txt")]
    selected = ["tests/kernels/test_contract.py"] if cpu else ["-m", "gpu", "tests/kernels"]
    once_more, failed = gpu_prepare.CARRIED / "failed.txt", ""
    if not once_more.is_file() or not once_more.read_text().strip():
        failed = f"no test failed in the first call (no {once_more.relative_to(ROOT)})"
    setup = [python, "benchmarks/gpu_prepare.py", "unpack", *on]
    needs_gpu = "needs a GPU" if cpu else ""
    sanitizer, ncu = _tool("compute-sanitizer"), _tool("ncu")
    # PyTorch calls the driver for things that may be absent: what it is answered is no error.
    sanitize = [sanitizer or "compute-sanitizer", "--report-api-errors", "no", "--error-exitcode", "9", "--tool"]
    no_sanitizer = needs_gpu or ("" if sanitizer else "there is no compute-sanitizer (part of the CUDA toolkit)")
    profile = [ncu or "ncu", "--clock-control", "none", "--profile-from-start", "off", "-k", f"regex:{PROFILED}"]
    profile += [word for section in SECTIONS for word in ("--section", section)]
    tuned = {"IRNET_TUNED": str(out / "tuned.json")}
    tune = [python, "-m", "irnet_kernels.gru.tune", "--file", str(out / "tuned.json"), *gpu_prepare.TUNED]
    gate = ["--add", "--baseline", str(out / "baseline.json"), "--cases", "tests/irnet_bench/toy/toy_cases.py"]
    first = Step("setup", setup, 75, fatal=True)  # 5 to 10 seconds unless something has to be built
    return {
        1: [
            first,
            Step("smoke", [python, "-m", "irnet_bench.smoke", *on], 60),
            Step("benchmarks-bfloat16", [*bench, "kernels", *measure, *bf16, "--pace-only"], 90),
            Step("tests", [*tests, *selected], 105),
            Step("memcheck", [*sanitize, "memcheck", *exercise, "--first", "conv_gru", *both],
                 60, no_sanitizer, env=UNCACHED),
            Step("ncu", [*profile, *exercise, "--shape", "cuda", *bf16, "--implementation", "auto", "--profile"],
                 45, needs_gpu or ("" if ncu else "there is no ncu (Nsight Compute)")),
        ],
        2: [
            first,
            Step("failed-tests", [*tests, f"@{once_more}"], 35, failed),
            Step("tune", [*tune, "--seconds", "80"], 85, needs_gpu),
            Step("conv_gru-tuned", [*bench, "kernels", "--filter", "conv_gru", *measure, *bf16, "--pace-only"],
                 30, needs_gpu, env=tuned),
            Step("benchmarks-float32", [*bench, "kernels", *measure, *fp32, "--pace-only"], 50),
            Step("model", [*bench, "model", "--filter", "forward_full", *measure, *bf16, "--mode", "forward"], 35),
            Step("training", [*bench, "training", "--filter", "train_step_full", *measure, *bf16], 35),
            Step("racecheck", [*sanitize, "racecheck", *exercise, "--implementation", "cuda"], 40, no_sanitizer),
        ],
        0: [  # by --only alone
            Step("gate", [*irnet, "bench", "gate", *on, *gate, "--kind", "counts"], 120),
        ],
    }  # fmt: skip


def run(step: Step, log: Path, seconds: float) -> Outcome:
    """Run a step; all it prints goes to the log. Over its limit it is interrupted, then killed."""
    start, used = time.monotonic(), _processor_seconds()
    limit = min(step.seconds, seconds - GRACE)
    if step.absent or limit <= 0:
        log.write_text("")
        return Outcome(step.name, f"skipped: {step.absent or 'the time of the call is spent'}", 0.0, 0.0, limit)
    env = os.environ | {
        "PYTHONPATH": os.pathsep.join([*PACKAGES, os.environ.get("PYTHONPATH", "")]),
        "PYTHONUNBUFFERED": "1",
        "TRITON_CACHE_DIR": str(gpu_prepare.TRITON_CACHE),
        **step.env,
    }
    with open(log, "wb") as file:
        words = [*(f"{name}={value}" for name, value in step.env.items()), *step.command]
        file.write(f"{shlex.join(words)}\n".encode())
        file.flush()
        streams = {"stdin": subprocess.DEVNULL, "stdout": file, "stderr": subprocess.STDOUT}
        process = subprocess.Popen(step.command, cwd=ROOT, env=env, start_new_session=True, **streams)
        try:
            code = process.wait(limit)
            words = "passed" if code == 0 else f"FAILED (exit code {code})"
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGINT)
            words = f"FAILED (interrupted after {limit:.0f} s)"
            try:
                process.wait(GRACE)
            except subprocess.TimeoutExpired:
                words = f"FAILED (killed after {limit + GRACE:.0f} s)"
        finally:
            if process.poll() is None or _group_lives(process.pid):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    return Outcome(step.name, words, time.monotonic() - start, _processor_seconds() - used, limit)


def check(chosen: Sequence[Step], out: Path, budget: float) -> list[Outcome]:
    """Run the steps in order and keep FOLDER up to date; ends after a fatal step that failed."""
    start, current = time.monotonic(), out / "current.log"
    outcomes: list[Outcome] = []
    with tempfile.TemporaryDirectory() as logs:  # not in FOLDER, of which only so many files are brought back
        for number, step in enumerate(chosen, 1):
            print(f"{step.name} ...", flush=True)
            outcomes.append(run(step, current, budget - (time.monotonic() - start)))
            print(f"{step.name}: {outcomes[-1].words}, {outcomes[-1].seconds:.0f} s", flush=True)
            if outcomes[-1].failed:
                print(*current.read_text(errors="replace").splitlines()[-25:], sep="\n", flush=True)
            shutil.move(current, Path(logs, f"{number:02}-{step.name}.log"))
            _write(out, logs, outcomes)
            if step.fatal and outcomes[-1].failed:
                print(f"{step.name} failed: what comes after it would tell nothing", flush=True)
                break
    return outcomes


def table(outcomes: Sequence[Outcome]) -> str:
    """The outcomes as a Markdown table."""
    lines = ["| step | outcome | seconds | of processors | limit |", "|---|---|---|---|---|"]
    lines += [f"| {o.name} | {o.words} | {o.seconds:.0f} | {o.processor:.0f} | {o.limit:.0f} |" for o in outcomes]
    return "\n".join(lines) + "\n"


def _write(out: Path, logs: str, outcomes: Sequence[Outcome]) -> None:
    """The table and the archive of logs, each replaced as a whole."""
    part = out / "results.part"
    with tarfile.open(part, "w:gz") as archive:
        archive.add(logs, "logs")
    part.replace(out / "results.tar.gz")
    part.write_text(table(outcomes))
    part.replace(out / "summary.md")


def _processor_seconds() -> float:
    """The processor seconds that all children that have ended have used."""
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def _group_lives(group: int) -> bool:
    """Whether a process of the group is still there, such as a worker whose parent has ended."""
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    return True


def _parallel() -> list[str]:
    """pytest's options for many workers, where pytest-xdist is installed."""
    import importlib.util

    return ["-n", str(min(WORKERS, os.cpu_count() or 1))] if importlib.util.find_spec("xdist") else []


def _tool(name: str) -> str | None:
    homes = [os.environ.get("CUDA_HOME", "/usr/local/cuda"), "/usr/local/cuda"]
    return shutil.which(name, path=os.pathsep.join([os.environ.get("PATH", ""), *(f"{home}/bin" for home in homes)]))


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--out", type=Path, required=True, metavar="FOLDER", help="where all results are written")
    parser.add_argument("--call", type=int, choices=(1, 2), default=1, help="which steps to run")
    parser.add_argument("--only", nargs="+", metavar="STEP", help="only these steps, of either call")
    parser.add_argument("--device", default="cuda", help="cpu tries what works without a GPU")
    parser.add_argument("--slower", type=float, default=1.0, metavar="FACTOR", help="times all limits, for a trial")
    options = parser.parse_args(arguments)
    out = options.out.resolve()
    out.mkdir(parents=True, exist_ok=True)
    calls = steps(options.device, out)
    chosen = calls[options.call]
    if options.only:
        known = {step.name: step for steps_of_call in calls.values() for step in steps_of_call}
        if unknown := [name for name in options.only if name not in known]:
            parser.error(f"no step is called {', '.join(unknown)}; there are {', '.join(known)}")
        chosen = [known[name] for name in options.only]
    if not (out / "baseline.json").exists():
        shutil.copy(ROOT / "benchmarks/baseline.json", out / "baseline.json")
    if not (out / "tuned.json").exists():
        (out / "tuned.json").write_text("{}\n")
    chosen = [replace(step, seconds=step.seconds * options.slower) for step in chosen]
    outcomes = check(chosen, out, BUDGETS[options.call] * options.slower)
    print(table(outcomes))
    return 1 if any(outcome.failed for outcome in outcomes) else 0


if __name__ == "__main__":
    sys.exit(main())
