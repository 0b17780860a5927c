"""Builds the native extension irnet_kernels._C where it can be built; all other metadata stands in pyproject.toml.

CUDA is decided by the toolkit and the environment, never by whether a GPU is visible:
  FORCE_CUDA=1              CUDA or an error (default: CUDA if torch has it, the toolkit fits, and there are .cu files)
  FORCE_CUDA=0              no CUDA
  TORCH_CUDA_ARCH_LIST=...  architectures to build for (default: 8.0, 9.0, 10.0 and PTX)
  CXX=...                   the C++ compiler (default: the first of c++, g++, clang++)
  IRNET_NO_EXT=1            no extension
  IRNET_REQUIRE_EXT=1       an error where the extension would be left out
  IRNET_SANITIZE=1          C++ with address and undefined-behaviour sanitizers, for `make sanitize`
"""

import importlib.util
import os
import re
import shlex
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Mapping
from pathlib import Path

import setuptools
from setuptools.errors import CCompilerError

HERE = Path(__file__).resolve().parent
SETUPTOOLS = 77  # the first that reads pyproject.toml's license; pip checks it only where it isolates the build
REBUILD = "pip install --no-build-isolation ."
NO_BUILD_COMMANDS = {"egg_info", "dist_info", "sdist", "clean", "--version", "--name", "--help"}


def old_setuptools(version: str) -> str | None:
    """What is wrong with this version of setuptools, with the cure; None if it can read pyproject.toml."""
    if int(version.split(".")[0]) >= SETUPTOOLS:
        return None
    return f'setuptools {version} is too old to read pyproject.toml; pip install "setuptools>={SETUPTOOLS}"'


def find_compiler(env: Mapping[str, str]) -> str | None:
    """The command of the C++ compiler, None if there is none. A CXX that does not exist is not replaced by another."""
    for command in [env["CXX"]] if env.get("CXX") else ["c++", "g++", "clang++"]:
        if shutil.which(shlex.split(command)[0], path=env.get("PATH", "")):
            return command
    return None


def host_compiler(compiler: str) -> str:
    """What nvcc is to call: the program without the launcher before it and the options behind (ccache g++ -m64)."""
    return next(word for word in reversed(shlex.split(compiler)) if not word.startswith("-"))


def decide(
    env: Mapping[str, str],
    *,
    torch_version: str | None,
    torch_cuda: str | None,
    toolkit: str | None,
    compiler: str | None,
    has_cu: bool,
) -> tuple[str, str]:
    """What to build and why: ("none" | "cpu" | "cuda" | "error", reason). `toolkit` is nvcc's version or None."""
    absent = trouble = None
    if env.get("IRNET_NO_EXT") == "1":
        absent = "left out because IRNET_NO_EXT=1"
    elif torch_version is None:
        absent = f"left out because torch cannot be imported at build time; with torch installed: {REBUILD}"
    elif compiler is None:
        what = f"CXX={env['CXX']} does not exist" if env.get("CXX") else "there is no C++ compiler (c++, g++, clang++)"
        absent = f"left out because {what}; install one (apt install g++), then {REBUILD}"
    if absent and env.get("IRNET_REQUIRE_EXT") == "1":
        return "error", f"IRNET_REQUIRE_EXT=1, but {absent}"
    if absent:
        return "none", absent
    if not has_cu:
        return "cpu", f"C++ for torch {torch_version}; there are no .cu files"
    if env.get("FORCE_CUDA") == "0":
        trouble = "FORCE_CUDA=0"
    elif torch_cuda is None:
        trouble = f"torch {torch_version} has no CUDA (install a CUDA build of torch)"
    elif toolkit is None:
        trouble = f"there is no nvcc (install the CUDA {torch_cuda} toolkit and set CUDA_HOME)"
    elif toolkit.split(".")[0] != torch_cuda.split(".")[0]:
        trouble = f"nvcc is {toolkit}, torch has CUDA {torch_cuda} (set CUDA_HOME to a CUDA {torch_cuda} toolkit)"
    if trouble is None:
        return "cuda", f"C++ and CUDA {toolkit} for torch {torch_version}"
    if env.get("FORCE_CUDA") == "1":
        return "error", f"FORCE_CUDA=1, but {trouble}"
    return "cpu", f"C++ for torch {torch_version}, no CUDA: {trouble}"


def missing_header(compiler: str, headers: list[str], include_dirs: list[str]) -> str | None:
    """What the compiler says about the first header it does not find, with the cure; None if it finds them all."""
    version = sysconfig.get_python_version()
    cures = {
        "Python.h": f"apt install python{version}-dev",
        "omp.h": "apt install libomp-dev, or set CXX=g++",
        "cuda_runtime.h": "install the whole CUDA toolkit, not nvcc alone",
    }
    for header in headers:
        command = [*shlex.split(compiler), "-x", "c++", "-fopenmp", "-E", "-", "-o", os.devnull]
        command += [f"-I{folder}" for folder in include_dirs]
        result = subprocess.run(command, input=f"#include <{header}>\n", text=True, capture_output=True)
        if result.returncode:
            said = next((line for line in result.stderr.splitlines() if "error" in line), result.stderr.strip())
            cure = cures.get(header, "apt install g++")
            return f"{compiler} does not find {header} ({said}); {cure}"
    return None


def extension() -> dict:
    """The arguments of setup() that build the extension: none where it is left out. Prints the decision."""
    torch = cpp_extension = None
    if importlib.util.find_spec("torch"):  # a torch that is there and does not import is the user's to see
        import torch
        from torch.utils import cpp_extension

    files = sorted(path.relative_to(HERE) for path in (HERE / "csrc").rglob("*.c*"))
    sources = [str(path) for path in files if path.suffix == ".cpp" and path.parent.name != "cuda"]
    cuda_sources = [str(path) for path in files if path.suffix in (".cpp", ".cu") and path.parent.name == "cuda"]
    compiler, toolkit, cuda_home = find_compiler(os.environ), None, None
    if torch and cpp_extension.CUDA_HOME:
        cuda_home = Path(cpp_extension.CUDA_HOME)
        if (cuda_home / "bin/nvcc").exists():
            said = subprocess.check_output([cuda_home / "bin/nvcc", "--version"], text=True)
            toolkit = re.search(r"release (\d+\.\d+)", said)[1]
    kind, reason = decide(
        os.environ,
        torch_version=torch and torch.__version__,
        torch_cuda=torch and torch.version.cuda,
        toolkit=toolkit,
        compiler=compiler,
        has_cu=any(name.endswith(".cu") for name in cuda_sources),
    )
    headers, include_dirs = ["Python.h", "string", "omp.h"], [sysconfig.get_path("include")]
    if kind == "cuda":
        headers += ["cuda_runtime.h"]
        include_dirs += [str(cuda_home / "include")]
    if kind in ("cpu", "cuda") and (trouble := missing_header(compiler, headers, include_dirs)):
        kind, reason = "error", f"{trouble}; or leave the extension out with IRNET_NO_EXT=1"
    if kind == "error":
        raise SystemExit(f"irnet: native extension: {reason}")
    print(f"irnet: native extension: {reason}", flush=True)
    if kind == "none":
        return {}

    os.environ["CXX"] = compiler
    facts = {"COMMIT": "unknown", "TORCH_VERSION": torch.__version__, "CUDA_VERSION": "", "CUDA_ARCHITECTURES": ""}
    if (HERE / ".git").exists() and shutil.which("git"):
        git = subprocess.run(["git", "rev-parse", "--short", "HEAD"], cwd=HERE, text=True, capture_output=True)
        facts["COMMIT"] = git.stdout.strip() or "unknown"
    if kind == "cuda":
        knows_sm_100 = tuple(map(int, toolkit.split("."))) >= (12, 8)
        os.environ.setdefault("TORCH_CUDA_ARCH_LIST", "8.0;9.0;10.0+PTX" if knows_sm_100 else "8.0;9.0+PTX")
        facts |= {"CUDA_VERSION": toolkit, "CUDA_ARCHITECTURES": os.environ["TORCH_CUDA_ARCH_LIST"].replace(" ", ";")}
        sources += cuda_sources

    class BuildExtension(cpp_extension.BuildExtension):
        def finalize_options(self) -> None:
            super().finalize_options()
            self.force = True  # distutils takes an extension that was built for another torch for up to date

        def build_extensions(self) -> None:
            try:
                super().build_extensions()
            except (CCompilerError, RuntimeError, ValueError, OSError, subprocess.SubprocessError) as error:
                message = f"{error}; the compiler's first error above names the piece; {compiler} must know C++20"
                raise SystemExit(f"irnet: native extension: {message}; IRNET_NO_EXT=1 leaves it out") from error

    optimise, sanitize = ["-O3", "-g0"], []
    if os.environ.get("IRNET_SANITIZE") == "1":  # Python's own flags have -fwrapv, which hides overflow
        optimise = ["-O1", "-g", "-fno-omit-frame-pointer", "-fno-wrapv", "-D_GLIBCXX_ASSERTIONS"]
        sanitize = ["-fsanitize=address,undefined,float-cast-overflow", "-fno-sanitize-recover=all"]
    cuda_macro = [("IRNET_WITH_CUDA", None)] if kind == "cuda" else []
    make = cpp_extension.CUDAExtension if kind == "cuda" else cpp_extension.CppExtension
    module = make(
        "irnet_kernels._C",
        sources,
        include_dirs=[str(HERE / "csrc/include")],
        define_macros=[(f"IRNET_{name}", f'"{value}"') for name, value in facts.items()] + cuda_macro,
        # -fopenmp: without it at::parallel_for, a template in torch's headers, runs on one thread.
        extra_compile_args={
            # No contraction: csrc/include/geometry.h rounds as the reference does; sums ask for fused multiply-adds.
            "cxx": [*optimise, *sanitize, "-fvisibility=hidden", "-fopenmp", "-ffp-contract=off"],
            "nvcc": ["-O3", "-fmad=false", "-ccbin", host_compiler(compiler), "-Xcompiler", "-fopenmp"],
        },
        extra_link_args=["-fopenmp", *sanitize],
    )
    return {"ext_modules": [module], "cmdclass": {"build_ext": BuildExtension}}


if __name__ == "__main__":
    if trouble := old_setuptools(setuptools.__version__):
        raise SystemExit(f"irnet: {trouble}")
    setuptools.setup(**({} if NO_BUILD_COMMANDS & set(sys.argv) else extension()))
