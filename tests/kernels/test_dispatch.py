"""How an implementation is chosen: `impl=`, IRNET_IMPL, the order of "auto", and what is said when one is missing."""

import contextlib
import importlib.util
import os
import subprocess
import sys

import pytest
import torch

import irnet_kernels
from irnet_kernels import ImplementationUnavailable, dispatch, extension, info, numerics
from tests.kernels.helpers import CASES, ragged
from tests.kernels.triton_modules import needs_interpreter

BOXES, PTR = torch.tensor([[0.0, 0, 2, 2]]), ragged(1)
each_operator = pytest.mark.parametrize("name", CASES)


def crop(features=None, **options):
    features = torch.ones(1, 1, 3, 3) if features is None else features
    return irnet_kernels.crop_resize(features, BOXES, PTR, 3, **options)


@contextlib.contextmanager
def kernels_for(impl: str, **functions):
    """Gives an implementation that no CPU has a CPU kernel, for as long as the context lasts."""
    with torch.library._scoped_library("irnet", "IMPL") as scope:
        for name, function in functions.items():
            scope.impl(f"{name}.{impl}", function, "CPU")
        yield


def sevens(features, boxes, ptr, size, border):
    return numerics.empty_map(features, (len(boxes), features.shape[1], size, size)).fill_(7)


def test_available_lists_every_operator_with_its_reference():
    have = irnet_kernels.available()
    names = {"crop_resize", "paste_mean", "conv_gru", "propagate", "propagate_regions"}
    assert set(have) == names | {"segment_matmul", "segment_outer"}
    for devices in have.values():
        assert set(devices) == {"cpu"} | ({"cuda"} if torch.cuda.is_available() else set())
        for implementations in devices.values():
            assert implementations[-1] == "reference"
            assert implementations == [i for i in dispatch.IMPLEMENTATIONS if i in implementations]


@each_operator
def test_unknown_name_is_refused(name):
    op, make = CASES[name]
    case = make("cpu")
    with pytest.raises(ValueError, match=f"{op}: impl is 'fast'; choose one of auto, cuda, triton, cpp, reference"):
        case.call("fast", *case.inputs(torch.float32, "cpu"))


@each_operator
@pytest.mark.parametrize("impl", ["cuda", "triton"])
def test_absent_implementation_is_refused_with_the_reason(name, impl):
    if impl == "triton" and dispatch.INTERPRETED:
        pytest.skip("Triton is interpreted on the CPU here")
    op, make = CASES[name]
    case = make("cpu")
    with pytest.raises(ImplementationUnavailable) as error:
        case.call(impl, *case.inputs(torch.float32, "cpu"))
    message = str(error.value)
    assert message.startswith(f"{op}: no {impl} kernel for cpu tensors here; ")
    assert "there is: " in message
    assert "reference" in message
    assert "it runs on cuda tensors only" in message


def test_all_reasons_are_given_at_once(monkeypatch):
    monkeypatch.setattr(dispatch, "_has_triton", lambda: False)
    with pytest.raises(ImplementationUnavailable, match=r"runs on cuda tensors only.*; Triton is not installed: pip"):
        crop(impl="triton")
    monkeypatch.setattr(extension, "native", lambda: None)
    monkeypatch.setattr(extension, "native_reason", lambda: "not built: as the test says")
    with pytest.raises(
        ImplementationUnavailable, match=r"runs on cuda tensors only.*; not built: as the test says; there"
    ):
        crop(impl="cuda")


def test_environment_sets_the_default(monkeypatch):
    with kernels_for("cuda", crop_resize=sevens):
        assert irnet_kernels.available()["crop_resize"]["cpu"][0] == "cuda"
        assert (crop() == 7).all(), "auto takes the first in order"
        monkeypatch.setenv("IRNET_IMPL", "reference")
        assert (crop() == 1).all()
        assert (crop(impl="cuda") == 7).all(), "a name in the call wins over the environment"
        monkeypatch.setenv("IRNET_IMPL", "cuda")
        assert (crop() == 7).all()
        assert (crop(impl="reference") == 1).all()
        monkeypatch.setenv("IRNET_IMPL", "auto")
        assert (crop() == 7).all()
    assert "cuda" not in irnet_kernels.available()["crop_resize"]["cpu"]
    monkeypatch.delenv("IRNET_IMPL")
    assert (crop() == 1).all()


def test_environment_is_checked_like_the_argument(monkeypatch):
    monkeypatch.setenv("IRNET_IMPL", "fast")
    with pytest.raises(ValueError, match="crop_resize: the environment's IRNET_IMPL is 'fast'; choose one of"):
        crop()
    assert (crop(impl="reference") == 1).all()
    monkeypatch.setenv("IRNET_IMPL", "cuda")
    with pytest.raises(ImplementationUnavailable, match="crop_resize: no cuda kernel for cpu tensors here"):
        crop()


def test_a_gradient_never_mixes_implementations():
    features = torch.ones(1, 1, 3, 3, requires_grad=True)
    with kernels_for("cuda", crop_resize=sevens):
        out = crop(features, impl="cuda")
        with pytest.raises(NotImplementedError, match=r"irnet::crop_resize_backward\.cuda"):
            out.sum().backward()

    def gradient(grad, boxes, ptr, height, width, border):
        return numerics.empty_map(grad, (len(ptr) - 1, grad.shape[1], height, width)).fill_(5)

    with kernels_for("cuda", crop_resize=sevens, crop_resize_backward=gradient):
        crop(features, impl="cuda").sum().backward()
    assert (features.grad == 5).all()


def test_implementation_unavailable_is_a_runtime_error():
    assert issubclass(ImplementationUnavailable, RuntimeError)


@pytest.mark.parametrize("impl", dispatch.IMPLEMENTATIONS)
def test_every_overload_is_declared_with_a_fake(impl):
    """Schema and fake stand without an implementation: shapes can be planned for a machine that is not this one."""
    for op in irnet_kernels.available():
        for name in (op,) if op.startswith("segment_") else (op, f"{op}_backward"):
            schema, reference = (str(dispatch.overload(name, which)._schema) for which in (impl, "reference"))
            assert schema.replace(f".{impl}(", ".reference(") == reference
    features = torch.empty(2, 3, 4, 5, device="meta")
    out = dispatch.overload("crop_resize", impl)(features, BOXES.to("meta"), PTR.to("meta"), 7, "zero")
    assert out.shape == (1, 3, 7, 7)


def test_info_prints_every_operator(capsys):
    info.main()
    printed = capsys.readouterr().out
    assert f"torch {torch.__version__}" in printed
    assert f"native extension: {extension.native_reason()}" in printed
    assert ("C++ on this processor: large results are stored " in printed) == (extension.native() is not None)
    for op, devices in irnet_kernels.available().items():
        assert f"{op} on cpu: {', '.join(devices['cpu'])}" in printed


INTERPRETED = """
import torch, irnet_kernels
from irnet_kernels import crop_resize, dispatch, numerics
have = irnet_kernels.available()["crop_resize"]["cpu"]
assert "triton" in have and have[-1] == "reference", have
assert dispatch.choose("crop_resize", "auto", "cpu") in ("cpp", "reference"), "the interpreter is only taken by name"
features = torch.randn(1, 3, 5, 6, requires_grad=True)
boxes, ptr = torch.tensor([[0.5, 1.0, 3.5, 3.0]]), torch.tensor([0, 1])
results = [crop_resize(features, boxes, ptr, 3, impl=impl) for impl in ("triton", "reference")]
torch.testing.assert_close(*results)
torch.testing.assert_close(*(torch.autograd.grad(r.square().sum(), features) for r in results))
"""


@pytest.mark.skipif(not importlib.util.find_spec("triton"), reason="Triton is not installed")
@needs_interpreter
def test_triton_runs_interpreted_on_the_cpu_where_that_is_asked_for():
    """Through PyTorch's dispatcher, with gradients; in a process of its own, as Triton reads the variable once."""
    environment = os.environ | {"TRITON_INTERPRET": "1"}
    done = subprocess.run([sys.executable, "-c", INTERPRETED], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
