"""The nn.Modules compute what the operators compute, with parameters that start as documented; public signatures."""

import inspect
import math

import pytest
import torch
from torch import nn

import irnet_kernels
from irnet_kernels import (
    ClassGraphConv,
    ConvGRUCell,
    ConvGRUWeights,
    CropResize,
    EdgeSet,
    PasteMean,
    RegionGraphConv,
    conv_gru,
    crop_resize,
    paste_mean,
    propagate,
    propagate_regions,
)
from irnet_kernels.testing import bits_equal
from tests.kernels.helpers import box_grid, normal, ragged, random_edges

BOXES, PTR = box_grid(3, 6, seed=1), ragged(2, 1)
FORMS = [(BOXES, PTR), (list(BOXES.split((2, 1))), None)]
MAP, PATCHES, ROWS = normal(2, 5, 6, 7).float(), normal(3, 5, 4, 4, seed=1).float(), normal(3, 4, seed=2).float()


@pytest.mark.parametrize(("boxes", "ptr"), FORMS, ids=["ptr", "list"])
def test_maps_and_patches(boxes, ptr):
    crop = CropResize(3, border="clamp", spatial_scale=0.5, impl="reference")
    want = crop_resize(MAP, BOXES, PTR, 3, border="clamp", spatial_scale=0.5, impl="reference")
    assert bits_equal(crop(MAP, boxes, ptr), want)
    paste = PasteMean(spatial_scale=0.5, impl="reference")
    assert bits_equal(
        paste(MAP, PATCHES, boxes, ptr), paste_mean(MAP, PATCHES, BOXES, PTR, spatial_scale=0.5, impl="reference")
    )
    assert not [*crop.parameters(), *paste.parameters(), *crop.state_dict()]


@pytest.mark.parametrize("gate", [1, 5])
def test_conv_gru_cell(gate):
    torch.manual_seed(0)
    cell = ConvGRUCell(5, gate)
    parameters = dict(cell.named_parameters())
    assert tuple(parameters) == tuple(cell.state_dict()) == ConvGRUWeights._fields
    out = cell(PATCHES, PATCHES + 1)
    assert bits_equal(out, conv_gru(PATCHES, PATCHES + 1, ConvGRUWeights(**parameters)))
    out.square().sum().backward()
    assert all(p.grad.any() for p in parameters.values())


def test_conv_gru_cell_starts_as_the_authors():
    torch.manual_seed(0)
    for name, weight in ConvGRUCell(40, 40).named_parameters():
        n = weight.numel()
        # The deviation of n normal numbers is off by std / sqrt(2 n); five times that is out of reach of chance.
        expected, slack = (0, 0) if name.endswith("bias") else (0.01, 0.05 / math.sqrt(2 * n))
        assert abs(weight.std().item() - expected) <= slack, name
        assert abs(weight.mean().item()) <= 5 * expected / math.sqrt(n), name


def test_gates_have_one_channel_or_all():
    with pytest.raises(ValueError, match="gate_channels must be 1 or 5, got 2"):
        ConvGRUCell(5, 2)


@pytest.mark.parametrize(("boxes", "ptr"), FORMS, ids=["ptr", "list"])
@pytest.mark.parametrize("learned", [False, True])
def test_region_graph_conv(boxes, ptr, learned):
    torch.manual_seed(0)
    conv = RegionGraphConv(4, 6, 30.0, learned)
    parameters = dict(conv.named_parameters())
    assert list(parameters) == ["weight", *(["log_bandwidth", "scale"] if learned else [])]
    bound = math.sqrt(6 / (5 * 4))
    assert parameters["weight"].shape == (5, 4, 6)
    assert 0.9 * bound < parameters["weight"].abs().max() <= bound
    start = propagate_regions(ROWS, BOXES, PTR, conv.weight, bandwidth=30.0)
    torch.testing.assert_close(conv(ROWS, boxes, ptr), start)
    assert learned or bits_equal(conv(ROWS, boxes, ptr), start)
    if learned:
        with torch.no_grad():
            conv.scale.copy_(torch.arange(5.0))
            conv.log_bandwidth.fill_(math.log(7.0))
        bandwidth = conv.log_bandwidth.exp()
        want = propagate_regions(ROWS, BOXES, PTR, conv.weight, bandwidth=bandwidth, scale=conv.scale)
        assert bits_equal(conv(ROWS, boxes, ptr), want)
    conv(ROWS, boxes, ptr).square().sum().backward()
    assert all(p.grad is not None for p in conv.parameters())


def test_class_graph_conv():
    torch.manual_seed(0)
    edges = EdgeSet.from_edges(random_edges(7, [12, 5]), 7)
    conv, x = ClassGraphConv(4, 6, num_types=2), normal(3, 7, 4).float()
    bound = math.sqrt(6 / (2 * 4))
    assert conv.weight.shape == (2, 4, 6)
    assert 0.9 * bound < conv.weight.abs().max() <= bound
    assert bits_equal(conv(x, edges), propagate(x, edges, conv.weight))
    assert bits_equal(conv(x[0], edges), propagate(x[0], edges, conv.weight))


MODULES = {
    "CropResize(size=5, border='zero', spatial_scale=0.0625, impl='auto')": lambda: CropResize(5, spatial_scale=1 / 16),
    "PasteMean(spatial_scale=1.0, impl='cpp')": lambda: PasteMean(impl="cpp"),
    "ConvGRUCell(8, gate_channels=1, impl='auto')": lambda: ConvGRUCell(8),
    "RegionGraphConv(4, 6, bandwidth=50.0, learn_geometry=True, impl='auto')": lambda: RegionGraphConv(
        4, 6, learn_geometry=True
    ),
    "ClassGraphConv(4, 6, num_types=3, impl='auto')": lambda: ClassGraphConv(4, 6, 3),
}


@pytest.mark.parametrize(("shown", "make"), MODULES.items(), ids=lambda value: value if isinstance(value, str) else "")
def test_modules_show_their_settings(shown, make):
    assert repr(make()) == shown


@pytest.mark.parametrize("make", MODULES.values(), ids=MODULES)
def test_impl_is_the_operators(make):
    """An implementation that is not one reaches the operator, which refuses it."""
    module = make()
    module.impl = "fast"
    edges = EdgeSet.from_edges(random_edges(3, [2, 2, 2]), 3)
    arguments = {
        CropResize: (MAP, BOXES, PTR),
        PasteMean: (MAP, PATCHES, BOXES, PTR),
        ConvGRUCell: (normal(1, 8, 2, 2).float(),) * 2,
        RegionGraphConv: (ROWS, BOXES, PTR),
        ClassGraphConv: (ROWS, edges),
    }[type(module)]
    with pytest.raises(ValueError, match="impl is 'fast'"):
        module(*arguments)


def test_modules_compile_without_a_break():
    class All(nn.Module):
        def __init__(self):
            super().__init__()
            self.crop, self.gru, self.paste = CropResize(4), ConvGRUCell(5), PasteMean()
            self.regions = RegionGraphConv(5, 5, learn_geometry=True)

        def forward(self, features, boxes, ptr):
            patches = self.crop(features, boxes, ptr)
            memory = self.paste(features, self.gru(patches, patches), boxes, ptr)
            return self.regions(self.crop(memory, boxes, ptr).mean((2, 3)), boxes, ptr)

    torch.manual_seed(0)
    module = All()
    compiled = torch.compile(module, fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(MAP, BOXES, PTR), module(MAP, BOXES, PTR))


# Without the modules that names come from.
SIGNATURES = {
    "ClassGraphConv": "(in_features: int, out_features: int, num_types: int, *, impl: str = 'auto')",
    "ConvGRUCell": "(channels: int, gate_channels: int = 1, *, impl: str = 'auto')",
    "ConvGRUWeights": "(new_x: Tensor, new_h: Tensor, reset_x: Tensor, reset_h: Tensor, update_x: Tensor, "
    "update_h: Tensor, new_bias: Tensor, reset_bias: Tensor, update_bias: Tensor)",
    "CropResize": "(size: int = 7, *, border: str = 'zero', spatial_scale: float = 1.0, impl: str = 'auto')",
    "EdgeSet": "(num_nodes: int, num_types: int, indptr: Tensor, indices: Tensor, values: Tensor, "
    "transpose_indptr: Tensor, transpose_indices: Tensor, transpose_values: Tensor) -> None",
    "EdgeSet.from_edges": "(edges: Sequence[tuple[Tensor, Tensor, Tensor]], num_nodes: int, normalize: bool = False)"
    " -> 'EdgeSet'",
    "EdgeSet.to": "(self, device: device | str) -> 'EdgeSet'",
    "ImplementationUnavailable": None,
    "PasteMean": "(*, spatial_scale: float = 1.0, impl: str = 'auto')",
    "RegionGraphConv": "(in_features: int, out_features: int, bandwidth: float = 50.0, learn_geometry: bool = False, "
    "*, impl: str = 'auto')",
    "available": "() -> dict[str, dict[str, list[str]]]",
    "conv_gru": "(inputs: Tensor, state: Tensor, weights: ConvGRUWeights, *, impl: str = 'auto') -> Tensor",
    "crop_resize": "(features: Tensor, boxes: Tensor | Sequence[Tensor], ptr: Tensor | None = None, size: int = 7, *, "
    "border: str = 'zero', spatial_scale: float = 1.0, impl: str = 'auto') -> Tensor",
    "paste_mean": "(memory: Tensor, patches: Tensor, boxes: Tensor | Sequence[Tensor], ptr: Tensor | None = None, *, "
    "spatial_scale: float = 1.0, impl: str = 'auto') -> Tensor",
    "propagate": "(x: Tensor, edges: EdgeSet, weight: Tensor, *, impl: str = 'auto') -> Tensor",
    "propagate_regions": "(x: Tensor, boxes: Tensor | Sequence[Tensor], ptr: Tensor | None, weight: Tensor, *, "
    "bandwidth: float | Tensor = 50.0, scale: Tensor | None = None, impl: str = 'auto') -> Tensor",
    "segment_matmul": "(inputs: Tensor, ptr: Tensor, other: Tensor, *, impl: str = 'auto') -> Tensor",
    "segment_outer": "(inputs: Tensor, ptr: Tensor, other: Tensor, *, impl: str = 'auto') -> Tensor",
}


def public(name):
    value = irnet_kernels
    for part in name.split("."):
        value = getattr(value, part)
    return value


def test_every_public_name_has_its_signature_here():
    assert sorted(irnet_kernels.__all__) == sorted(name for name in SIGNATURES if "." not in name)


@pytest.mark.parametrize(("name", "wanted"), [(n, s) for n, s in SIGNATURES.items() if s], ids=lambda value: value)
def test_public_signatures(name, wanted):
    """Who changes one of these breaks somebody's program: say so in CHANGELOG.md."""
    shown = str(inspect.signature(public(name)))
    for module in ("irnet_kernels.graph.edges.", "irnet_kernels.gru.api.", "collections.abc.", "torch."):
        shown = shown.replace(module, "")
    assert shown == wanted


# Fields of ConvGRUWeights have their shapes beside them; EdgeSet.to is one sentence.
DOCUMENTED = [n for n, s in SIGNATURES.items() if s and n not in ("ConvGRUWeights", "EdgeSet.to")]


@pytest.mark.parametrize("name", DOCUMENTED)
def test_docstrings_name_every_parameter(name):
    value = public(name)
    parameters = [parameter for parameter in inspect.signature(value).parameters if parameter != "self"]
    text = inspect.getdoc(value)  # without the source's indentation, which Python 3.13 no longer keeps
    assert [p for p in parameters if f"\n    {p}: " not in text] == []
    if inspect.isfunction(value):
        sections = ["Returns:"] if name == "available" else ["Args:", "Returns:", "Raises:"]
        assert [section for section in sections if f"\n{section}\n" not in text] == []
