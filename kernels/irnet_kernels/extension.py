"""The native extension irnet_kernels._C: loads it once, tells what it was built with or why it is not there."""

import functools
import importlib
import importlib.util
import shutil
from pathlib import Path
from types import ModuleType

import torch  # loads the libraries that the extension links to

NAME = "irnet_kernels._C"
REBUILD = "pip install --no-build-isolation . (in irnet's source tree, or -e . for an editable install)"


def _major_minor(version: str) -> str:
    return ".".join(version.split(".")[:2])


@functools.cache
def native() -> ModuleType | None:
    """The extension module, or None where it was not built.

    Raises ImportError where it is there but does not load, or was built for another torch (major.minor).
    """
    if importlib.util.find_spec(NAME) is None:
        return None
    try:
        module = importlib.import_module(NAME)
    except ImportError as error:
        raise ImportError(
            f"{NAME} does not load with torch {torch.__version__} ({error}); rebuild: {REBUILD}"
        ) from error
    built_for = module.build_info()["torch_version"]
    if _major_minor(built_for) != _major_minor(torch.__version__):
        raise ImportError(
            f"{NAME} was built for torch {built_for}, this is torch {torch.__version__}; rebuild: {REBUILD}"
        )
    return module


def cpu_paths() -> str:
    """What the C++ kernels let this processor decide, in a few words; "" where there are none."""
    try:
        module = native()
    except ImportError:  # native_reason tells
        return ""
    if module is None:
        return ""
    stores = "past the caches" if module.cpu_path("streaming_stores") else "through the caches"
    gates = "oneDNN" if module.cpu_path("gates_by_onednn") else "loops of its own"
    return f"large results are stored {stores}, products of gates in bfloat16 are made by {gates}"


def native_reason() -> str:
    """One line: "built: <facts>", "not built: <why and the cure>" or, if native() raises, "broken: <its message>"."""
    try:
        module = native()
    except ImportError as error:
        return f"broken: {error}"
    if module is not None:
        return "built: " + ", ".join(f"{key} {value or 'none'}" for key, value in module.build_info().items())
    others = sorted(path.name for path in Path(__file__).parent.glob("_C.*.so"))
    if others:
        why, cure = f"{', '.join(others)} is for another Python", REBUILD
    elif not any(map(shutil.which, ("c++", "g++", "clang++"))):
        why, cure = "there is no C++ compiler", f"install one (apt install g++), then {REBUILD}"
    else:
        why, cure = "irnet was installed without it, or runs from a source tree that was not built", REBUILD
    return f"not built: {why}; {cure}"
