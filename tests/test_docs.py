"""`make docs` builds the API reference without a warning, and every public operator and name has its place in it."""

import subprocess
import sys
from pathlib import Path

import pytest

import irnet
import irnet_kernels

ROOT = Path(__file__).resolve().parents[1]


def test_the_reference_builds_without_a_warning(tmp_path):
    pytest.importorskip("sphinx", reason="Sphinx is not installed: pip install sphinx")
    command = [sys.executable, "-m", "sphinx", "-q", "-W", "--keep-going", "-b", "html", str(ROOT / "docs")]
    done = subprocess.run([*command, str(tmp_path)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "operators/crop_resize.html").exists()


@pytest.mark.parametrize("package", [irnet, irnet_kernels], ids=lambda package: package.__name__)
def test_every_public_name_is_described(package):
    pages = "".join(path.read_text() for path in (ROOT / "docs").rglob("*.rst"))
    names = [name for name in package.__all__ if name != "__version__"]
    assert [name for name in names if f":: {package.__name__}.{name}\n" not in pages] == []
