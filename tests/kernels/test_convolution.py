"""conv3x3: what PyTorch's convolution gives, on both sides of the bounds of Winograd's products; who chooses them."""

import itertools

import pytest
import torch
from torch.nn import functional as F

import irnet_kernels
from irnet_kernels.convolution import Conv3x3, conv3x3
from irnet_kernels.convolution.workspace import CHANNELS, fewer_products
from irnet_kernels.testing import bits_equal
from tests.kernels.helpers import assert_within_budget, evaluate, normal

NATIVE = "cpp" in irnet_kernels.available()["conv_gru"]["cpu"]
if NATIVE:
    OPERATOR, GRADIENT = torch.ops.irnet.conv3x3.cpp, torch.ops.irnet.conv3x3_backward.cpp
needs_native = pytest.mark.skipif(not NATIVE, reason=f"no C++ kernels: {irnet_kernels.extension.native_reason()}")
channels_last = {"memory_format": torch.channels_last}

# maps, inputs, outputs, height, width
SIZES = {
    "patches": (16, 272, 256, 7, 7),
    "many-patches": (65, 256, 258, 5, 5),
    "odd-by-even": (1, 256, 265, 25, 32),
    "even-by-odd": (2, 262, 256, 22, 19),
    "odd": (3, 256, 256, 31, 33),
    "even": (1, 256, 256, 28, 30),
    "thin": (1, 256, 256, 5, 154),
    "short": (4, 256, 256, 200, 5),
    "too-few-cells": (15, 256, 256, 7, 7),
    "too-narrow": (16, 255, 256, 7, 7),
    "too-flat": (1, 256, 256, 4, 200),
    "one-cell": (3, 5, 4, 1, 1),
    "no-maps": (0, 256, 256, 28, 30),
}
BY_PRODUCTS = list(SIZES)[:8]
GROUPS = {"many-patches": 2, "odd": 3, "short": 4}  # of maps that are worked on one after the other, where not 1
each_size = pytest.mark.parametrize("size", SIZES.values(), ids=SIZES)


@pytest.fixture(autouse=True)
def threads():
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def leaves(size, bias=True, dtype=torch.float32, layout=channels_last):
    maps, inputs, outputs, height, width = size
    x, weight = normal(maps, inputs, height, width), normal(outputs, inputs, 3, 3, seed=1) * (9 * inputs) ** -0.5
    tensors = [x.to(dtype).contiguous(**layout), weight.to(dtype), *([normal(outputs, seed=2).to(dtype)] * bias)]
    return [t.requires_grad_() for t in tensors]


def theirs(x, weight, bias=None):
    return F.conv2d(x, weight, bias, padding=1)


def by(impl):
    return lambda *tensors: conv3x3(*tensors, impl=impl)


def assert_like_theirs(call, tensors, calls=theirs):
    """By the rule of irnet_kernels.testing. The reference is PyTorch in that layout in which oneDNN sums most
    terms in one chain: over channels and taps in channels_last, over cells, for the weight, in NCHW."""
    exact = [t.detach().double().requires_grad_() for t in tensors]
    chained = [t.detach().requires_grad_() for t in tensors]
    planes = [t.detach().contiguous().requires_grad_() for t in tensors]
    found = [evaluate(call, tensors), *(evaluate(calls, inputs) for inputs in (exact, chained, planes))]
    for name, got, wanted, packed, plain in zip(("result", "x", "weight", "bias"), *found, strict=False):
        assert_within_budget(got, wanted, plain if name == "weight" else packed, name)


@pytest.mark.parametrize("bias", [True, False], ids=["bias", "no-bias"])
@pytest.mark.parametrize("impl", ["auto", "reference", *["cpp"] * NATIVE])
@each_size
def test_result_and_gradients_are_a_convolutions(size, impl, bias):
    assert_like_theirs(by(impl), leaves(size, bias))


def test_products_serve_the_sizes_that_are_meant():
    served = [name for name, (b, c, d, *size) in SIZES.items()
              if fewer_products(torch.empty(b, c, *size), torch.empty(d, c, 3, 3))]  # fmt: skip
    assert served == BY_PRODUCTS


@needs_native
@pytest.mark.parametrize("name", SIZES)
def test_the_bounds_are_those_of_the_kernel(name):
    """oneDNN, or the products of all pairs of parts along both axes and, where there are several, of all groups."""
    x, weight, bias = (t.detach() for t in leaves(SIZES[name]))
    with torch.profiler.profile() as profile:
        OPERATOR(x, weight, bias)
    names = [event.name for event in profile.events()]
    across, down = (4 + size % 2 for size in SIZES[name][3:])
    products = across * down * GROUPS.get(name, 1) if name in BY_PRODUCTS else 0
    assert (names.count("aten::mm"), "aten::conv2d" in names) == (products, not products and len(x) > 0)


@needs_native
@pytest.mark.parametrize("name", ["patches", "many-patches", "odd", "too-few-cells"])
def test_the_same_call_gives_the_same_bits(name):
    tensors = leaves(SIZES[name])
    torch.set_num_threads(3)
    first = evaluate(by("cpp"), tensors)
    for _ in range(3):
        assert all(map(bits_equal, first, evaluate(by("cpp"), tensors)))


@needs_native
@pytest.mark.parametrize("size", [(16, 256, 256, 7, 7), (1, 256, 256, 31, 33)], ids=["patches", "map"])
def test_bits_do_not_depend_on_the_number_of_threads(size):
    """As far as those of a matrix product do not, which is so for the widths of the model's layers."""
    found = []
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        found.append(evaluate(by("cpp"), leaves(size)))
    for one, other in itertools.pairwise(found):
        assert all(map(bits_equal, one, other))


@needs_native
def test_any_strides():
    tensors = [t.detach() for t in leaves(SIZES["patches"])]
    gaps = [torch.stack([t, torch.full_like(t, torch.nan)], -1)[..., 0] for t in tensors]
    wanted = evaluate(by("cpp"), [t.clone().requires_grad_() for t in tensors])
    expanded = tensors[0][:1].expand(16, -1, -1, -1)  # as the first memory of a batch
    for inputs in (gaps, [t.contiguous() for t in tensors], [t.contiguous(**channels_last) for t in tensors[:2]]):
        inputs = [*inputs, tensors[2]][:3]
        found = evaluate(by("cpp"), [t.detach().requires_grad_() for t in inputs])
        assert all(map(bits_equal, found, wanted))
    assert_within_budget(OPERATOR(expanded, *tensors[1:]), theirs(*(t.double() for t in (expanded, *tensors[1:]))),
                         theirs(expanded, *tensors[1:]))  # fmt: skip


@each_size
def test_a_result_may_be_changed_in_place(size):
    tensors = leaves(size)
    # Not a ReLU: another order of the same sums may move a unit across its kink.
    assert_like_theirs(lambda *t: conv3x3(*t).tanh_(), tensors, calls=lambda *t: theirs(*t).tanh())


@pytest.mark.parametrize("impl", ["auto", "reference", *["cpp"] * NATIVE])
def test_gradcheck(impl):
    tensors = leaves((2, 2, 3, 3, 4), dtype=torch.float64)
    assert torch.autograd.gradcheck(by(impl), tensors)
    assert torch.autograd.gradgradcheck(by(impl), tensors)


@needs_native
@pytest.mark.parametrize("wrt", [0, 1], ids=["x", "weight"])
def test_second_gradients_by_products(wrt):
    def gradient(call):
        return lambda *t: torch.autograd.grad(call(*t).square().sum(), t[wrt], create_graph=True)[0]

    tensors = leaves(SIZES["patches"], bias=False)
    assert_like_theirs(gradient(by("cpp")), tensors, calls=gradient(theirs))


@needs_native
def test_opcheck():
    x, weight, bias = leaves(SIZES["patches"])
    grad = OPERATOR(x, weight, bias).detach().clone().requires_grad_()
    torch.library.opcheck(OPERATOR, (x, weight, bias))
    torch.library.opcheck(OPERATOR, (x.detach().contiguous().requires_grad_(), weight, None))
    for of_weight in (False, True):
        torch.library.opcheck(GRADIENT, (grad, x, weight, of_weight))


def test_compiles_without_a_break():
    torch._dynamo.reset()
    layer = Conv3x3(CHANNELS, CHANNELS)

    def call(x, *parameters):
        return layer(x)

    compiled = torch.compile(call, fullgraph=True, backend="aot_eager")
    for maps in (16, 20):
        tensors = [leaves((maps, CHANNELS, CHANNELS, 7, 7))[0], *layer.parameters()]
        *found, bias = evaluate(call, tensors)
        *wanted, wanted_bias = evaluate(compiled, tensors)
        assert all(map(torch.equal, found, wanted))
        torch.testing.assert_close(bias, wanted_bias)  # the sum of a gradient in another layout


def test_an_exported_program_takes_maps_of_any_number_and_size():
    layer = Conv3x3(CHANNELS, CHANNELS).requires_grad_(False)
    dims = {0: torch.export.Dim("maps"), 2: torch.export.Dim("height", min=3), 3: torch.export.Dim("width", min=3)}
    program = torch.export.export(layer, (torch.rand(2, CHANNELS, 6, 8),), dynamic_shapes=(dims,)).module()
    for shape in ((1, 30, 40), (20, 7, 7), (3, 4, 5)):
        x = torch.rand(shape[0], CHANNELS, *shape[1:]).to(**channels_last)
        assert torch.equal(program(x), layer(x))


def made_by(x, weight) -> str:
    return type(conv3x3(x.requires_grad_(), weight).grad_fn).__name__


def test_auto_is_pytorchs_convolution_where_products_never_serve(monkeypatch):
    x, weight = leaves((1, CHANNELS, CHANNELS, 28, 28), bias=False)
    own = made_by(x, weight)
    assert own == ("GeneratedBackwardFor_irnet_conv3x3_cppBackward" if NATIVE else "ConvolutionBackward0")
    assert made_by(x.double(), weight.double()) == "ConvolutionBackward0"
    assert made_by(x[:, 1:].detach(), weight[:, 1:]) == made_by(x, weight[1:]) == "ConvolutionBackward0"
    with torch.autocast("cpu", torch.bfloat16):
        assert conv3x3(x, weight).dtype == torch.bfloat16
        assert made_by(x, weight) == "ConvolutionBackward0"
    monkeypatch.setenv("IRNET_IMPL", "reference")
    assert made_by(x, weight) == "ConvolutionBackward0"


def test_the_layer_is_a_convolution_with_its_names_and_start():
    torch.manual_seed(0)
    ours = Conv3x3(4, 6)
    torch.manual_seed(0)
    wanted = torch.nn.Conv2d(4, 6, 3, padding=1)
    assert isinstance(ours, torch.nn.Conv2d)
    assert ours.state_dict().keys() == wanted.state_dict().keys()
    x = torch.rand(2, 4, 5, 6)
    assert torch.equal(ours(x), wanted(x))


@needs_native
@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda x, w, b: (x[0], w, b), r"x \[B, C, H, W\]"),
        (lambda x, w, b: (x[:, 1:], w, b), "wants x"),
        (lambda x, w, b: (x, w[..., 1:], b), "wants x"),
        (lambda x, w, b: (x.double(), w, b), "one dtype"),
        (lambda x, w, b: (x, w, b[1:]), r"bias \[D\]"),
    ],
    ids=["dimensions", "channels", "taps", "dtype", "bias"],
)
def test_shapes_are_checked_by_the_kernel(change, message):
    tensors = change(*(t.detach() for t in leaves((1, 5, 4, 6, 7))))
    with pytest.raises(ValueError, match=message):
        OPERATOR(*tensors)
    x, weight, _ = (t.detach() for t in leaves((1, 5, 4, 6, 7)))
    with pytest.raises(ValueError, match="wants grad"):
        GRADIENT(x, x, weight, True)


@needs_native
@pytest.mark.parametrize(("setting", "names"), [("cpp", {"irnet::conv3x3"}), ("triton", {"aten::conv2d"})])
def test_an_implementation_that_it_has_not_is_asked_of_other_operators_alone(setting, names, monkeypatch):
    monkeypatch.setenv("IRNET_IMPL", setting)
    x, weight, bias = (t.detach() for t in leaves(SIZES["patches"]))
    with torch.profiler.profile() as profile:
        conv3x3(x, weight, bias)
    assert {event.name for event in profile.events()} & {"irnet::conv3x3", "aten::conv2d"} == names
