"""What gpu_check takes along to a machine with a GPU: an extension that is built already, and a warm Triton cache.

    python3 benchmarks/gpu_prepare.py pack     without a GPU, in an environment like that machine's: fills build/gpu
    python3 benchmarks/gpu_prepare.py unpack   there: puts both in place, and builds an extension where none fits

`make gpu-prepare` makes such an environment and packs. The cache is valid under one absolute path only, since its own
files name it, and for one version of Triton and Python.
"""

import argparse
import hashlib
import importlib.metadata
import json
import os
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import tempfile
from collections.abc import Iterable
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
CARRIED = ROOT / "build/gpu"
EXTENSION = CARRIED / f"_C{sysconfig.get_config_var('EXT_SUFFIX')}"
FACTS = CARRIED / "facts.json"
CACHE = CARRIED / "triton-cache.tar.xz"
TRITON_CACHE = Path("/tmp/irnet-gpu-check/triton")
ARCHITECTURE = "9.0"
BUILD = {"FORCE_CUDA": "1", "IRNET_REQUIRE_EXT": "1"}
KEPT = (".cubin", ".json", ".so")  # of a kernel's files in the cache: it is launched from these alone
# All that the first minutes launch: at the real sizes, at the small ones for sanitizers, and by the tests.
DTYPES = ("float32", "bfloat16")
EXERCISE = ("irnet_kernels.aot.driver", "irnet_bench.exercise", "--implementation", "triton", "--dtype", *DTYPES)
TUNED = ("--dtype", "bfloat16", "--gates", "narrow")  # what the benchmarks and the paper's model launch
TESTS = ("pytest", "-q", "-p", "no:cacheprovider", "-p", "irnet_kernels.aot.driver", "tests/kernels")
SELECTED = ("--ignore-glob=*fuzz.py", "-k", "triton-cpu")  # the fuzzers also pass what no reference answers


def pack() -> None:
    """Build the extension for the one architecture, fill a Triton cache, and leave both in build/gpu."""
    shutil.rmtree(CARRIED, ignore_errors=True)
    shutil.rmtree(TRITON_CACHE, ignore_errors=True)
    CARRIED.mkdir(parents=True)
    build = BUILD | _toolkit() | {"TORCH_CUDA_ARCH_LIST": ARCHITECTURE}
    folders = [word for part in ("lib", "temp") for word in (f"--build-{part}", str(CARRIED / part))]
    _python("setup.py", "-q", "build_ext", *folders, env=build)
    shutil.move(CARRIED / "lib/irnet_kernels" / EXTENSION.name, EXTENSION)
    for part in ("lib", "temp"):
        shutil.rmtree(CARRIED / part)
    cache = {"TRITON_CACHE_DIR": str(TRITON_CACHE), "OMP_NUM_THREADS": "1"}
    for shape in ("cuda", "gate"):
        _python("-m", *EXERCISE, "--shape", shape, env=cache)
    _python("-m", "irnet_kernels.gru.tune", "--compile-only", *TUNED, env=cache)
    _python("-m", *TESTS, *SELECTED, "-n", "auto", env=cache)
    with tarfile.open(CACHE, "w:xz") as archive:
        archive.add(TRITON_CACHE, TRITON_CACHE.name, filter=_kept)
    FACTS.write_text(json.dumps(facts(), indent=1) + "\n")
    sizes = ", ".join(f"{path.name} {path.stat().st_size / 2**20:.1f} MiB" for path in sorted(CARRIED.iterdir()))
    print(f"{CARRIED}: {sizes}; {sum(1 for _ in TRITON_CACHE.iterdir())} entries of Triton's cache")


def unpack(device: str) -> None:
    """Put in place what was packed; build an extension where it is not for this tree, this Python and this torch."""
    here, packed = facts(), json.loads(FACTS.read_text()) if FACTS.is_file() else {}
    differs = [name for name in here if packed.get(name) != here[name]]
    if CACHE.is_file() and not TRITON_CACHE.exists():
        TRITON_CACHE.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=TRITON_CACHE.parent) as part, tarfile.open(CACHE) as archive:
            archive.extractall(part, filter="data")
            Path(part, TRITON_CACHE.name).rename(TRITON_CACHE)  # all of it or nothing
        print(f"{TRITON_CACHE}: {sum(1 for _ in TRITON_CACHE.iterdir())} entries", flush=True)
        if "kernels" in differs:
            print(
                "it is of other Triton kernels: those that have changed are compiled when they are launched", flush=True
            )
    check = LOADED.format(cuda=device != "cpu")
    target = ROOT / "kernels/irnet_kernels" / EXTENSION.name
    if EXTENSION.is_file() and not set(differs) - {"kernels"}:
        shutil.copy(EXTENSION, target)
        try:
            _python("-c", check)
            return
        except subprocess.CalledProcessError:
            target.unlink()
            differs = ["that it does not load here"]
    print(f"what was packed is not taken: it differs in {', '.join(differs)}", flush=True)
    if device != "cpu":
        _python("setup.py", "build_ext", "--inplace", env=BUILD | _toolkit() | _this_gpu())
    _python("-c", check)


LOADED = """
import torch, irnet_kernels.info
irnet_kernels.info.main()
if {cuda}:
    assert torch.cuda.is_available(), "there is no GPU that torch can use"
    available = irnet_kernels.available()
    assert "cuda" in available["crop_resize"]["cuda"], "the extension has no CUDA kernels"
    assert "triton" in available["conv_gru"]["cuda"], "there is no Triton"
"""


def facts() -> dict[str, str]:
    """What the extension (sources) and the cache (kernels) depend on, and both of them."""
    sources = _digest([*(ROOT / "csrc").rglob("*.*"), ROOT / "setup.py"])
    kernels = _digest((ROOT / "kernels").rglob("*.py"))
    versions = {name: importlib.metadata.version(name) for name in ("torch", "triton")}
    # "+cu130" is not part of every build's metadata.
    return {name: version.partition("+")[0] for name, version in versions.items()} | {
        "python": sysconfig.get_python_version(),
        "sources": sources,
        "kernels": kernels,
    }


def _digest(paths: Iterable[Path]) -> str:
    digest = hashlib.sha256()
    for path in sorted(paths):
        digest.update(str(path.relative_to(ROOT)).encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()


def _kept(entry: tarfile.TarInfo) -> tarfile.TarInfo | None:
    return entry if entry.isdir() or entry.name.endswith(KEPT) else None


def _toolkit() -> dict[str, str]:
    """Where the toolkit is, and where PyTorch's packages of CUDA libraries have the headers that a bare one lacks."""
    homes = [os.environ.get("CUDA_HOME"), "/usr/local/cuda"]  # PyTorch takes the folder above an nvcc in PATH
    toolkits = [("CUDA_HOME", home) for home in homes if home and Path(home, "bin/nvcc").is_file()]
    folder = Path(sysconfig.get_path("purelib")) / "nvidia/cu13/include"
    paths = [str(folder)] if folder.is_dir() else []
    paths += filter(None, [os.environ.get("CPATH")])
    return dict([*toolkits[:1], *([("CPATH", os.pathsep.join(paths))] if paths else [])])


def _this_gpu() -> dict[str, str]:
    import torch

    return {"TORCH_CUDA_ARCH_LIST": "{}.{}".format(*torch.cuda.get_device_capability())}


def _python(*words: str, env: dict[str, str] | None = None) -> None:
    """Run Python in the source tree; raises CalledProcessError where it fails."""
    paths = [*(str(ROOT / part) for part in ("", "kernels", "benchmarks")), os.environ.get("PYTHONPATH", "")]
    env = os.environ | {"PYTHONPATH": os.pathsep.join(paths)} | (env or {})
    subprocess.run([sys.executable, *words], cwd=ROOT, env=env, check=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("action", choices=("pack", "unpack"))
    parser.add_argument("--device", default="cuda", help="unpack: cpu builds nothing")
    options = parser.parse_args()
    if options.action == "pack":
        pack()
    else:
        unpack(options.device)


if __name__ == "__main__":
    main()
