"""Installing irnet: what is built and why, what the archives contain, and that it works with no compiler."""

import importlib.util
import os
import re
import shutil
import site
import subprocess
import sys
import sysconfig
import tarfile
import tomllib
from pathlib import Path

import pytest
import torch
from setuptools import Distribution

import irnet
from irnet_kernels import extension

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = {
    "irnet": ROOT / "irnet",
    "irnet_kernels": ROOT / "kernels/irnet_kernels",
    "irnet_bench": ROOT / "benchmarks/irnet_bench",
}
NOT_SOURCE = (".git", ".venv*", "build", "dist", "runs", "results", "__pycache__", ".*_cache", "*.egg-info", "*.so")


def load_setup():
    spec = importlib.util.spec_from_file_location("irnet_setup", ROOT / "setup.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


setup = load_setup()


def source_files(package: Path) -> set[str]:
    """The files that belong to an installed package, relative to it."""
    files = (path for path in package.rglob("*") if path.is_file())
    return {
        str(f.relative_to(package)) for f in files if "__pycache__" not in f.parts and f.suffix not in (".so", ".pyc")
    }


def run(command: list, **options) -> subprocess.CompletedProcess:
    result = subprocess.run(command, text=True, capture_output=True, stdin=subprocess.DEVNULL, **options)
    assert result.returncode == 0, f"{command}\n{result.stdout}\n{result.stderr}"
    return result


@pytest.fixture
def tree(tmp_path) -> Path:
    """A copy of the sources with nothing that was built."""
    return shutil.copytree(ROOT, tmp_path / "tree", ignore=shutil.ignore_patterns(*NOT_SOURCE))


# ---------------------------------------------------------------------------------------------------- the sources


def test_kernels_folder_is_no_package():
    for folder in ("kernels", "benchmarks"):
        assert not (ROOT / folder / "__init__.py").exists(), f"{folder}/__init__.py shadows a package of that name"


@pytest.mark.parametrize("package", PACKAGES)
def test_every_folder_of_a_package_is_a_package_and_typed(package):
    folders = {path.parent for path in PACKAGES[package].rglob("*.py")}
    assert [str(folder) for folder in folders if not (folder / "__init__.py").exists()] == []
    assert (PACKAGES[package] / "py.typed").exists()


def test_version_stands_in_one_place():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert "version" not in project
    assert "version" in project["dynamic"]
    files = [ROOT / "setup.py", ROOT / "pyproject.toml", ROOT / "Makefile", *(ROOT / "csrc").rglob("*.*")]
    files += [path for folder in ("irnet", "kernels", "benchmarks") for path in (ROOT / folder).rglob("*.py")]
    named = [str(path.relative_to(ROOT)) for path in files if f'"{irnet.__version__}"' in path.read_text()]
    assert named == ["irnet/__init__.py"]


def pins(name: str) -> dict[str, str]:
    lines = (ROOT / name).read_text().splitlines()
    return dict(line.split("==") for line in lines if line and not line.startswith("#"))


def test_pins_are_exact_and_cover_every_requirement():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    peers = set(extras.pop("peers"))  # they need a PyTorch of their own
    packages = {re.split(r"[^\w-]", line)[0] for line in sum(extras.values(), project["dependencies"])} - {"irnet"}
    assert packages == set(pins("constraints.txt"))
    assert peers | {"torch"} == set(pins("constraints-peers.txt"))
    for name in ("constraints-oldest.txt", "constraints-gpu.txt"):  # a line without == would not be read
        assert {"torch", "triton", "numpy", "pytest", "pytest-xdist", "hypothesis"} <= set(pins(name))
    (oldest,) = (line for line in project["dependencies"] if line.startswith("torch"))
    assert pins("constraints-oldest.txt")["torch"] == f"{oldest.partition('>=')[2]}.0"


# ---------------------------------------------------------------------------------------------- what is to be built

HERE_ALL = {"torch_version": "2.13.0", "torch_cuda": "13.0", "toolkit": "13.0", "compiler": "c++", "has_cu": True}


@pytest.mark.parametrize(
    ("env", "facts", "kind", "says"),
    [
        pytest.param({}, {}, "cuda", "CUDA 13.0", id="all-there"),
        pytest.param({}, {"has_cu": False}, "cpu", "no .cu files", id="no-cu-files"),
        pytest.param({}, {"torch_cuda": None}, "cpu", "torch 2.13.0 has no CUDA", id="cpu-torch"),
        pytest.param({}, {"toolkit": None}, "cpu", "no nvcc", id="no-toolkit"),
        pytest.param({}, {"toolkit": "12.8"}, "cpu", "nvcc is 12.8", id="other-toolkit"),
        pytest.param({}, {"toolkit": "13.2"}, "cuda", "CUDA 13.2", id="other-minor"),
        pytest.param({"FORCE_CUDA": "1"}, {}, "cuda", "CUDA 13.0", id="force-all-there"),
        pytest.param({"FORCE_CUDA": "1"}, {"torch_cuda": None}, "error", "FORCE_CUDA=1", id="force-cpu-torch"),
        pytest.param({"FORCE_CUDA": "1"}, {"toolkit": None}, "error", "set CUDA_HOME", id="force-no-toolkit"),
        pytest.param({"FORCE_CUDA": "1"}, {"toolkit": "12.8"}, "error", "nvcc is 12.8", id="force-other-toolkit"),
        pytest.param({"FORCE_CUDA": "1"}, {"has_cu": False}, "cpu", "no .cu files", id="force-no-cu-files"),
        pytest.param({"FORCE_CUDA": "0"}, {}, "cpu", "FORCE_CUDA=0", id="force-no-cuda"),
        pytest.param({"FORCE_CUDA": "1"}, {"compiler": None}, "none", "no C++ compiler", id="force-no-compiler"),
        pytest.param({}, {"compiler": None}, "none", "apt install g++", id="no-compiler"),
        pytest.param({"CXX": "/gone"}, {"compiler": None}, "none", "CXX=/gone does not exist", id="bad-cxx"),
        pytest.param({}, {"torch_version": None}, "none", "--no-build-isolation", id="no-torch"),
        pytest.param({"IRNET_NO_EXT": "1"}, {}, "none", "IRNET_NO_EXT=1", id="no-ext"),
        pytest.param({"IRNET_NO_EXT": "0"}, {}, "cuda", "CUDA 13.0", id="no-ext-0"),
        pytest.param({"IRNET_REQUIRE_EXT": "1"}, {}, "cuda", "CUDA 13.0", id="require-all-there"),
        pytest.param({"IRNET_REQUIRE_EXT": "1"}, {"compiler": None}, "error", "no C++", id="require-no-compiler"),
        pytest.param({"IRNET_REQUIRE_EXT": "1"}, {"torch_version": None}, "error", "torch", id="require-no-torch"),
        pytest.param({"IRNET_REQUIRE_EXT": "1", "IRNET_NO_EXT": "1"}, {}, "error", "IRNET_NO_EXT", id="require-no-ext"),
    ],
)
def test_decision(env, facts, kind, says):
    decided, reason = setup.decide(env, **(HERE_ALL | facts))
    assert decided == kind
    assert says in reason


def test_a_visible_gpu_decides_nothing():
    assert "torch.cuda." not in (ROOT / "setup.py").read_text()


def test_compiler_is_found_by_cxx_then_by_name(tmp_path):
    for name in ("g++", "clang++", "ccache"):
        (tmp_path / name).write_text("#!/bin/sh\n")
        (tmp_path / name).chmod(0o755)
    path = {"PATH": str(tmp_path)}
    assert setup.find_compiler(path) == "g++"
    assert setup.find_compiler(path | {"CXX": "clang++"}) == "clang++"
    assert setup.find_compiler(path | {"CXX": "ccache g++"}) == "ccache g++"
    assert setup.find_compiler(path | {"CXX": "/gone/g++"}) is None
    assert setup.find_compiler({"PATH": str(tmp_path / "empty")}) is None


@pytest.mark.parametrize("command", ["g++", "ccache g++", "g++ -m64", "ccache g++ -m64 -pipe"])
def test_nvcc_is_given_the_compiler_without_its_launcher_and_options(command):
    assert setup.host_compiler(command) == "g++"


def test_missing_header_is_named_with_its_cure(tmp_path):
    compiler = setup.find_compiler(os.environ)
    if compiler is None:
        pytest.skip("there is no C++ compiler on this machine")
    (tmp_path / "there.h").write_text("")
    assert setup.missing_header(compiler, ["there.h"], [str(tmp_path)]) is None
    trouble = setup.missing_header(compiler, ["there.h", "Python.h"], [str(tmp_path)])
    assert "Python.h" in trouble
    assert f"apt install python{sysconfig.get_python_version()}-dev" in trouble


# --------------------------------------------------------------------------------------------------- the extension


def test_build_facts_are_those_of_this_torch():
    module = extension.native()
    if module is None:
        pytest.skip(extension.native_reason())
    facts = module.build_info()
    assert list(facts) == ["compiler", "cxx_standard", "torch_version", "cuda_version", "cuda_architectures", "commit"]
    assert facts["torch_version"] == torch.__version__
    assert facts["cxx_standard"] >= 17
    assert re.fullmatch(r"(g|clang)\+\+ \d+\.\d+\.\d+", facts["compiler"])
    assert bool(facts["cuda_architectures"]) == (facts["cuda_version"] is not None)
    assert extension.native_reason().startswith("built: ")


def test_an_extension_is_built_anew_where_another_lies(monkeypatch):
    """Without ninja distutils takes one that was built for another torch for up to date."""
    monkeypatch.delenv("IRNET_NO_EXT", raising=False)
    monkeypatch.setenv("FORCE_CUDA", "0")
    monkeypatch.chdir(ROOT)
    arguments = setup.extension()
    if not arguments:
        pytest.skip("there is no C++ compiler")
    command = arguments["cmdclass"]["build_ext"](
        Distribution({"ext_modules": arguments["ext_modules"]}), use_ninja=False
    )
    command.finalize_options()
    assert command.force


@pytest.fixture
def stand_in(tmp_path, monkeypatch):
    """A function that puts a Python module with the given source (None: no module) in the extension's place."""

    def put(source: str | None) -> None:
        if source is not None:
            (tmp_path / "irnet_stand_in.py").write_text(source)
        monkeypatch.setattr(extension, "NAME", "irnet_stand_in")
        monkeypatch.delitem(sys.modules, "irnet_stand_in", raising=False)
        monkeypatch.syspath_prepend(tmp_path)
        extension.native.cache_clear()

    yield put
    sys.modules.pop("irnet_stand_in", None)
    extension.native.cache_clear()


def facts_for(version: str) -> str:
    return f"def build_info(): return {{'torch_version': {version!r}, 'cuda_version': None}}"


def test_absent_extension_is_none_with_a_reason(stand_in):
    stand_in(None)
    assert extension.native() is None
    assert re.match(r"not built: .*pip install --no-build-isolation", extension.native_reason())


def test_extension_for_this_torch_is_loaded_once(stand_in):
    stand_in(facts_for(torch.__version__))
    assert extension.native() is extension.native()
    assert extension.native_reason() == f"built: torch_version {torch.__version__}, cuda_version none"


def test_extension_for_another_patch_release_is_loaded(stand_in):
    stand_in(facts_for(".".join(torch.__version__.split(".")[:2]) + ".99"))
    assert extension.native() is not None


@pytest.mark.parametrize(
    ("source", "says"),
    [
        pytest.param(facts_for("1.13.1"), "was built for torch 1.13.1", id="other-torch"),
        pytest.param("raise ImportError('undefined symbol: _ZN2at')", "undefined symbol: _ZN2at", id="does-not-load"),
    ],
)
def test_broken_extension_is_an_error_that_says_how_to_rebuild(stand_in, source, says):
    stand_in(source)
    with pytest.raises(ImportError, match=r"pip install --no-build-isolation") as error:
        extension.native()
    assert says in str(error.value)
    assert extension.native_reason() == f"broken: {error.value}"


# ----------------------------------------------------------------------------------------- archives and installations


@pytest.mark.parametrize("version", ["65.5.0", "67.8.0.post20230601", "76.1.0", "9.1"])
@pytest.mark.parametrize("command", ["egg_info", "bdist_wheel"])
def test_an_old_setuptools_is_told_in_one_line(version, command, tree):
    """Python 3.11 brings 65.5.0, which without build isolation nobody replaces."""
    code = f"""
import runpy, setuptools, sys
setuptools.__version__, sys.argv = "{version}", ["setup.py", "{command}"]
runpy.run_path("setup.py", run_name="__main__")
"""
    env = os.environ | {"IRNET_NO_EXT": "1"}  # where the check fails, nothing is compiled
    done = subprocess.run([sys.executable, "-c", code], cwd=tree, env=env, text=True, capture_output=True)
    line = f'irnet: setuptools {version} is too old to read pyproject.toml; pip install "setuptools>=77"\n'
    assert (done.returncode, done.stdout, done.stderr) == (1, "", line)


def test_the_least_setuptools_is_the_same_everywhere():
    assert [setup.old_setuptools(version) for version in ("77.0.1", "81.0.0", "84.2.1", "100.0")] == [None] * 4
    pyproject = tomllib.loads((ROOT / "pyproject.toml").read_text())
    words = f"setuptools>={setup.SETUPTOOLS}"
    assert pyproject["build-system"]["requires"] == [words]
    assert words in pyproject["project"]["optional-dependencies"]["build"]
    readme = (ROOT / "README.md").read_text()
    assert readme.index(f'pip install "{words}"') < readme.index("pip install --no-build-isolation .")


def test_sdist_contains_what_a_build_needs(tree, tmp_path):
    (tree / "csrc/cuda").mkdir(exist_ok=True)
    (tree / "csrc/cuda/throw_away.cu").write_text("// CUDA\n")
    (tree / "csrc/throw_away.h").write_text("// header\n")
    build = "import sys; from setuptools import build_meta; build_meta.build_sdist(sys.argv[1])"
    run([sys.executable, "-c", build, str(tmp_path)], cwd=tree)
    (archive,) = tmp_path.glob("*.tar.gz")
    assert archive.name == f"irnet-{irnet.__version__}.tar.gz"
    with tarfile.open(archive) as tar:
        names = {name.split("/", 1)[1] for name in tar.getnames() if "/" in name}
    expected = {"LICENSE", "README.md", "constraints.txt", "pyproject.toml", "setup.py", "Makefile"}
    expected |= {"csrc/cuda/throw_away.cu", "csrc/throw_away.h"}
    expected |= {str(path.relative_to(tree)) for path in (tree / "csrc").rglob("*") if path.is_file()}
    for package in PACKAGES.values():
        expected |= {str(package.relative_to(ROOT) / name) for name in source_files(package)}
    assert expected - names == set()
    assert [name for name in names if name.endswith((".so", ".pyc"))] == []


def test_install_without_a_compiler_is_pure_python_and_works(tree, tmp_path):
    """Into a fresh environment that sees this one's packages; PATH holds nothing but that environment."""
    venv = tmp_path / "venv"
    run([sys.executable, "-m", "venv", "--without-pip", str(venv)])
    (packages,) = venv.glob("lib/python*/site-packages")
    (packages / "base.pth").write_text("\n".join(site.getsitepackages()))
    env = {"PATH": str(venv / "bin"), "HOME": str(tmp_path), "OMP_NUM_THREADS": "1"}
    pip = [sys.executable, "-m", "pip", "--python", venv / "bin/python", "install", "-v", "--no-index", "--no-deps"]
    installed = run([*pip, "--no-build-isolation", "--ignore-installed", tree], env=env, cwd=tmp_path)
    assert "irnet: native extension: left out because there is no C++ compiler" in installed.stdout + installed.stderr
    for name, source in PACKAGES.items():
        assert source_files(packages / name) == source_files(source)

    check = """
import importlib.metadata, irnet, irnet_kernels
from irnet_kernels import extension
assert extension.native() is None
from irnet.report.page import page
from irnet_bench import report
assert "<h1>A title</h1>" in page("A title", [], [], {}) and "<h1>" in report.page([])  # their templates are there
print(irnet.__file__, irnet_kernels.__file__, importlib.metadata.version("irnet"), sep="\\n")
print(extension.native_reason())
"""
    lines = run([venv / "bin/python", "-c", check], env=env, cwd=tmp_path).stdout.splitlines()
    assert lines[0] == str(packages / "irnet/__init__.py")
    assert lines[1] == str(packages / "irnet_kernels/__init__.py")
    assert lines[2] == irnet.__version__
    assert lines[3].startswith("not built: there is no C++ compiler; install one (apt install g++)")
    assert "demo" in run([venv / "bin/irnet", "--help"], env=env, cwd=tmp_path).stdout


# ---------------------------------------------------------------------------------------------------- the Makefile


def fake_python(path: Path, version: str, has_venv: bool) -> Path:
    """A program that answers the Makefile's two questions as such a Python would."""
    path.write_text(f'#!/bin/sh\ncase "$2" in *venv*) exit {int(not has_venv)} ;; *) echo {version} ;; esac\n')
    path.chmod(0o755)
    return path


@pytest.mark.parametrize(
    ("version", "has_venv", "says"),
    [
        pytest.param("3.10", True, "is Python 3.10, irnet needs 3.11, 3.12 or 3.13: name one", id="too-old"),
        pytest.param("3.14", True, "is Python 3.14, irnet needs 3.11, 3.12 or 3.13: name one", id="too-new"),
        pytest.param("3.12", False, "apt install python3.12-venv", id="no-venv"),
        pytest.param(None, True, "does not run: install Python 3.11, 3.12 or 3.13", id="no-python"),
        pytest.param("3.12", True, None, id="fits"),
    ],
)
@pytest.mark.parametrize("target", ["demo", "test", "lint"])
def test_make_says_in_one_line_what_is_wrong_with_python(tree, tmp_path, target, version, has_venv, says):
    if shutil.which("make") is None:
        pytest.skip("there is no make on this machine")
    python = fake_python(tmp_path / "python", version, has_venv) if version else tmp_path / "gone"
    env = {key: value for key, value in os.environ.items() if not key.startswith(("MAKE", "MFLAGS"))}
    command = ["make", "--dry-run", f"PYTHON={python}", target]
    result = subprocess.run(command, cwd=tree, env=env, text=True, capture_output=True)
    if says is None:
        assert result.returncode == 0
        assert "pip" in result.stdout
    else:
        assert result.returncode == 2
        assert result.stdout == ""
        assert len(result.stderr.splitlines()) == 1
        assert says in result.stderr
