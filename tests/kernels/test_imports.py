"""What importing the operators costs and needs, each in a fresh process; and that they know nothing of the model."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.tools import imported

ROOT = Path(__file__).resolve().parents[2]
SOURCES = sorted(path for folder in ("kernels", "tests/kernels") for path in (ROOT / folder).rglob("*.py"))


def run(script: str, **environment: str) -> str:
    """The output of `script` in a fresh interpreter that finds both packages in the source tree."""
    path = os.pathsep.join([str(ROOT), str(ROOT / "kernels")])
    result = subprocess.run(
        [sys.executable, "-W", "error::ImportWarning", "-c", script],
        env={**os.environ, "PYTHONPATH": path, **environment},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stderr
    return result.stdout


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_operators_and_their_tests_import_neither_the_model_nor_the_harness(path):
    assert not [name for name in imported(path, ROOT) if name.split(".")[0] in ("irnet", "irnet_bench")]


def test_import_is_light():
    """No Triton, no Dynamo, no CUDA context, no native module: neither on import nor when asked what there is."""
    run("""
import sys, torch
before = set(sys.modules)
import irnet_kernels, irnet_kernels.counts, irnet_kernels.info
irnet_kernels.available()
new = set(sys.modules) - before
heavy = [m for m in new if m.split(".")[0] == "triton" or m.startswith(("torch._dynamo", "torch._inductor"))]
assert not heavy, sorted(heavy)[:5]
assert not torch.cuda.is_initialized()
assert not [m for m in new if m.startswith("irnet_kernels.") and m.endswith(".triton")]
""")


def test_operators_work_without_triton_and_extension():
    """Schemas stand, the reference serves, and asking for more says why there is none."""
    output = run("""
import sys
sys.modules["triton"] = None  # importing it raises
sys.modules["irnet_kernels._C"] = None
import torch, irnet_kernels as k
assert k.available() == {op: {d: ["reference"] for d in devices} for op, devices in k.available().items()}
boxes, ptr = torch.tensor([[0.0, 0, 2, 2], [1, 1, 3, 3]]), torch.tensor([0, 1, 2])
features = torch.rand(2, 4, 5, 5, requires_grad=True)
patches = k.crop_resize(features, boxes, ptr)
gru = k.ConvGRUWeights(*(torch.rand(s) for s in [(4, 4, 3, 3)] * 2 + [(1, 4, 3, 3)] * 4 + [(4,), (1,), (1,)]))
memory = k.paste_mean(torch.zeros_like(features), k.conv_gru(patches, patches, gru), boxes, ptr)
edges = k.EdgeSet.from_edges([(torch.tensor([0]), torch.tensor([1]), torch.tensor([1.0]))], 2)
x = memory.mean((2, 3))
y = k.propagate(x, edges, torch.rand(1, 4, 4)) + k.propagate_regions(x, boxes, ptr, torch.rand(5, 4, 4))
z = k.segment_matmul(y, ptr, k.segment_outer(y, ptr, y))
z.sum().backward()
assert features.grad.isfinite().all() and features.grad.any()
for op in k.available():
    for impl in ("reference", "cpp", "cuda", "triton"):
        getattr(getattr(torch.ops.irnet, op), impl)
        op.startswith("segment_") or getattr(getattr(torch.ops.irnet, op + "_backward"), impl)
try:
    k.crop_resize(features, boxes, ptr, impl="cpp")
except k.ImplementationUnavailable as error:
    print(error)
""")
    assert "crop_resize: no cpp kernel for cpu tensors here; not built: " in output
    assert "pip install" in output


def test_environment_reaches_a_fresh_process():
    run(
        """
import torch, irnet_kernels as k
try:
    k.crop_resize(torch.ones(1, 1, 2, 2), torch.zeros(1, 4), torch.tensor([0, 1]))
except ValueError as error:
    assert "IRNET_IMPL is 'fast'" in str(error)
else:
    raise AssertionError
""",
        IRNET_IMPL="fast",
    )
