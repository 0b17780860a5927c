"""What a measurement is made on: device, versions, source, clocks, and the machine's ceilings. Runs no case.

psutil tells of the processor where it is installed; measuring does not need it. nvidia-smi tells of a GPU: it comes
with the driver, so that no package is needed.
"""

import contextlib
import functools
import hashlib
import importlib.metadata
import logging
import os
import platform
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import torch

import irnet
import irnet_bench
import irnet_kernels
from irnet import __version__

from . import timing

try:
    import psutil
except ModuleNotFoundError:
    psutil = None

IDENTITY = ("device", "processor", "capability", "threads")  # two that differ in one are different machines
PACKAGES = tuple(Path(package.__file__).resolve().parent for package in (irnet, irnet_kernels, irnet_bench))
NOISE = 0.25  # cores that what runs on any machine may take
log = logging.getLogger("irnet")


def facts(device: torch.device) -> dict:
    """What stands in every record: the device, its threads and clocks, versions, commit and a digest of the source."""
    return {
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
        "processor": processor(),
        "capability": capability(device),
        "threads": torch.get_num_threads(),
        "cores": len(os.sched_getaffinity(0)),
        **condition(device),
        "versions": versions(device),
        **_commit(),
        "source": source(),
    }


def condition(device: torch.device) -> dict:
    """What changes while a machine works: clock rates in MHz, the load on its CPU, the cores that others take."""
    return {"clocks": _clocks(device), "load": os.getloadavg()[0], "others": others()}


def others(seconds: float = 0.2) -> float:
    """How many of the cores that are ours other programs take, on average over the next `seconds`."""
    if not psutil:  # the load of the last minute, in which this program has just begun
        return os.getloadavg()[0]
    own, begin = time.process_time(), time.perf_counter()
    cores = psutil.cpu_percent(seconds, percpu=True)
    busy = sum(cores[core] for core in os.sched_getaffinity(0) if core < len(cores)) / 100
    return round(max(0.0, busy - (time.process_time() - own) / (time.perf_counter() - begin)), 2)


def warn_if_loaded(device: torch.device, facts: dict) -> bool:
    """Warn in one line where other programs leave too few cores for what is measured; whether it did.

    facts  of this moment, as `facts` or `condition` give them
    """
    cores, threads = len(os.sched_getaffinity(0)), 1 if device.type == "cuda" else torch.get_num_threads()
    if facts["others"] <= max(0, cores - threads) + NOISE:
        return False
    log.warning(
        "this machine is loaded: other programs take %.1f of %d cores, and %d threads are to be timed; times will be "
        "too long, often by far: end the other programs and measure again",
        *(facts["others"], cores, threads),
    )
    return True


def same(one: dict, other: dict) -> list[str]:
    """The names of the facts that make two machines different ones: none for the same machine."""
    return [name for name in IDENTITY if one.get(name) != other.get(name)]


def processor() -> str:
    """The CPU's name."""
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()


def processor_model() -> str:
    """The CPU's name and, where the kernel tells them, its family and model: a virtual machine's name may say no more
    than "AMD EPYC" of any of them.
    """
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    said = {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in lines)}
    numbers = [f"{word} {said[key]}" for word, key in (("family", "cpu family"), ("model", "model")) if key in said]
    return ", ".join([processor(), *numbers])


def import_path() -> str:
    """PYTHONPATH for a process that is to import what this one has imported."""
    return os.pathsep.join(str(package.parent) for package in PACKAGES)


def capability(device: torch.device) -> str:
    """The instruction set that PyTorch uses on the CPU, or the GPU's architecture: AVX512, sm_90."""
    if device.type == "cuda":
        return "sm_{}{}".format(*torch.cuda.get_device_capability(device))
    return torch.backends.cpu.get_cpu_capability()


def versions(device: torch.device) -> dict[str, str]:
    """Versions of what a result depends on; a package that is not installed is absent."""
    installed = {"irnet": __version__, "python": platform.python_version(), "torch": torch.__version__}
    for name in ("triton", "torchvision", "torch-geometric"):
        try:
            installed[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    if device.type == "cuda":
        installed["cuda"] = str(torch.version.cuda)
        driver = _nvidia_smi(device, "driver_version")
        installed |= {"driver": driver[0]} if driver else {}
    return installed


@functools.cache
def source() -> str:
    """A digest of the Python files of irnet, its operators and this harness, and of the native extension."""
    digest = hashlib.sha256()
    for package in PACKAGES:
        for path in sorted(p for p in package.rglob("*") if p.suffix in (".py", ".so")):
            digest.update(str(path.relative_to(package)).encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()[:12]


def copy_rate(device: torch.device, mebibytes: int = 256) -> float:
    """Bytes that a large copy moves per second, those read and those written counted; the best of several."""
    source = torch.ones(mebibytes << 18, device=device)
    target = torch.empty_like(source)
    return 2 * source.nbytes / _best(lambda: target.copy_(source), device)


def matmul_rate(device: torch.device, dtype: torch.dtype, side: int | None = None) -> float:
    """Floating-point operations per second of a large matrix product, in the precision that torch is set to."""
    side = side or (8192 if device.type == "cuda" else 1024)
    # Random numbers: products of zeros run faster than real ones on some GPUs.
    a, b = torch.randn(2, side, side, device=device).to(dtype)
    return 2 * side**3 / _best(lambda: a @ b, device)


@contextlib.contextmanager
def variable(name: str, value: str) -> Iterator[None]:
    """Within, this variable of the environment has this value."""
    before = os.environ.get(name)
    os.environ[name] = value
    try:
        yield
    finally:
        os.environ.pop(name)
        if before is not None:
            os.environ[name] = before


def synchronize(device: torch.device) -> None:
    """Wait until the device has done all that it was told."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _best(call, device: torch.device, times: int = 5) -> float:
    call()
    if device.type == "cuda":
        return min(timing.events([call], times))
    seconds = []
    for _ in range(times):
        start = time.perf_counter()
        call()
        seconds.append(time.perf_counter() - start)
    return min(seconds)


def _commit() -> dict:
    """The commit of the source tree and whether it was changed since; {} where irnet does not run from one."""
    root = PACKAGES[0].parent
    if not (root / ".git").exists() or not shutil.which("git"):
        return {"commit": None, "dirty": None}
    ask = functools.partial(subprocess.run, cwd=root, capture_output=True, text=True)
    commit = ask(["git", "rev-parse", "--short=12", "HEAD"]).stdout.strip()
    # Results are written while benchmarks run: they do not change what is measured.
    changes = ask(["git", "status", "--porcelain", "--", ".", ":!benchmarks/results", ":!README.md"]).stdout.strip()
    return {"commit": commit or None, "dirty": bool(changes)}


def _clocks(device: torch.device) -> dict[str, float]:
    """Present clock rates in MHz, under the names that the machine gives them."""
    if device.type == "cuda":
        values = _nvidia_smi(device, "clocks.sm,clocks.mem")
        return dict(zip(("sm", "memory"), map(float, values), strict=True)) if values else {}
    frequency = psutil and psutil.cpu_freq()
    return {"cpu": frequency.current} if frequency else {}


def _nvidia_smi(device: torch.device, query: str) -> list[str]:
    """What nvidia-smi answers, [] where it is absent or cannot say."""
    if not shutil.which("nvidia-smi"):
        return []
    which = torch.cuda.get_device_properties(device).uuid
    command = ["nvidia-smi", f"--id=GPU-{which}", f"--query-gpu={query}", "--format=csv,noheader,nounits"]
    result = subprocess.run(command, capture_output=True, text=True)
    values = [v.strip() for v in result.stdout.split(",")]
    return values if result.returncode == 0 and not any("N/A" in v for v in values) else []
