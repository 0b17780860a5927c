"""Peers: other programs, and plain PyTorch, that compute what irnet's operators compute. No kernel of irnet is called.

Each function takes what a case is set up from and returns implementations that share the case's inputs. Sampling grids,
covered cells and CSR matrices are made beforehand: a peer is charged for its passes over the data, not for its
geometry; only the adjacency of propagate_regions is made in the call, as irnet makes it.

All are the same function, unless said otherwise, and are checked to be in float64 and float32. In 16 bits they are not:
the definition computes in float32 and rounds once, peers round after every step.
"""

import functools
import importlib.util
import warnings
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.functional import conv2d, grid_sample

from irnet_kernels import EdgeSet
from irnet_kernels.roi import reference as roi

from .case import Implementation, Setup

TOLERANCE = 1e-4  # cells by which a position may lie outside and still count as on the border
# What a peer may materialise, per kind of device: beyond, a CPU needs seconds for a call, and on a GPU the copies that
# its gradient takes do not fit.
MOST = {"cpu": 2**30, "cuda": 2**35}


def crop_resize(setup: Setup, boxes: Tensor, ptr: Tensor) -> dict[str, Implementation]:
    """Peers of crop_resize, for boxes inside the map: outside it they have other rules than irnet."""
    size, wide = setup.size, _wide(setup)
    image, rank, most = _image_and_rank(ptr)
    low, high = boxes.to(wide).view(-1, 2, 2).unbind(1)  # [R, 2], x before y
    step = torch.linspace(0, 1, size, dtype=wide, device=boxes.device) if size > 1 else boxes.new_tensor([0.5]).to(wide)
    x, y = (low[:, None] + step[:, None] * (high - low)[:, None]).unbind(2)  # [R, size]
    grid = torch.stack(
        torch.broadcast_tensors(_normalised(x, setup.width)[:, None], _normalised(y, setup.height)[:, :, None]), 3
    )
    grids = grid.new_full((len(ptr) - 1, most, size, size, 2), -4).index_put((image, rank), grid).flatten(1, 2)

    def by_grid_sample(features):
        # One call for the whole batch, the regions of an image below each other; float32 as under autocast.
        patches = grid_sample(features.to(wide), grids, align_corners=True).unflatten(2, (most, size)).transpose(1, 2)
        even = len(boxes) == patches.shape[0] * most
        return (patches.flatten(0, 1) if even else patches[image, rank]).to(features.dtype)

    # One sample per bin, at its centre: bins around irnet's positions. roi_align's cell 0 has its centre at 0.5.
    half = (high - low) / max(size - 1, 1) / 2
    first, last = low + step[0] * (high - low), low + step[-1] * (high - low)
    rois = torch.cat([image[:, None].to(wide), first - half + 0.5, last + half + 0.5], 1)

    def by_roi_align(features):
        from torchvision.ops import roi_align

        # It has no bfloat16: float32 as under autocast.
        return roi_align(features.to(wide), rois, size, 1.0, 1, True).to(features.dtype)

    return {
        "torchvision roi_align": _optional("torchvision", by_roi_align, checked=_checked(setup)),
        "grid_sample": Implementation(by_grid_sample, peer=True, checked=_checked(setup)),
        "torch.compile": compiled(lambda features: roi.crop_resize(features, boxes, ptr, size, "zero")),
    }


def paste_mean(setup: Setup, boxes: Tensor, ptr: Tensor) -> dict[str, Implementation]:
    """Peers of paste_mean."""
    size, wide, counts = setup.size, _wide(setup), ptr.diff().tolist()
    low, high = boxes.to(wide).view(-1, 2, 2).unbind(1)
    axes = []
    for axis, cells in enumerate((setup.width, setup.height)):
        cell = torch.arange(cells, dtype=wide, device=boxes.device)
        at = (cell - low[:, axis, None]) / (high - low)[:, axis, None] * (size - 1)
        inside = (at >= -TOLERANCE) & (at <= size - 1 + TOLERANCE)
        axes.append((torch.where(inside, _normalised(at.clamp(0, size - 1), size), -4), inside))  # -4: far outside
    (x, inside_x), (y, inside_y) = axes
    grids = torch.stack(torch.broadcast_tensors(x[:, None], y[:, :, None]), 3).split(counts)  # [R_i, H, W, 2] each
    covered = (inside_y[:, :, None] & inside_x[:, None]).to(wide).split(counts)
    count = torch.stack([c.sum(0, keepdim=True) for c in covered]).clamp(min=1)  # [B, 1, H, W]

    def resize_all(memory, patches):
        parts = patches.to(wide).split(counts)  # float32 as under autocast
        total = [grid_sample(p, g, align_corners=True).sum(0) for p, g in zip(parts, grids, strict=True)]
        return (memory.to(wide) + torch.stack(total) / count).to(memory.dtype)

    return {
        "resize all and sum": Implementation(resize_all, peer=True),
        "torch.compile": compiled(lambda memory, patches: roi.paste_mean(memory, patches, boxes, ptr)),
    }


def conv_gru(setup: Setup, reset_bias: Tensor, update_bias: Tensor) -> dict[str, Implementation]:
    """Peers of conv_gru, and the product of two matrices that has its FLOPs."""

    def plain(x, h, *weights):
        new_x, new_h, reset_x, reset_h, update_x, update_h, new_bias = weights
        r = (conv2d(x, reset_x, reset_bias, padding=1) + conv2d(h, reset_h, padding=1)).sigmoid()
        u = (conv2d(x, update_x, update_bias, padding=1) + conv2d(h, update_h, padding=1)).sigmoid()
        n = (conv2d(x, new_x, new_bias, padding=1) + conv2d(r * h, new_h, padding=1)).relu()
        return u * (n - h)

    return {
        "plain PyTorch": Implementation(plain, peer=True, checked=_checked(setup)),
        "torch.compile": compiled(plain, checked=_checked(setup)),
        "matrix product": _product(setup, setup.regions * setup.size**2, 18 * setup.channels, setup.channels),
    }


def _product(setup: Setup, rows: int, depth: int, columns: int) -> Implementation:
    """A yardstick: the product of two matrices with the FLOPs of an operator's own products."""
    # Not zeros, whose product is faster on some GPUs.
    a = torch.randn(rows, depth, dtype=setup.dtype, device=setup.device)
    b = torch.randn(depth, columns, dtype=setup.dtype, device=setup.device)
    return Implementation(lambda *inputs: _Product.apply(a, b, *inputs), peer=True, checked=False)


class _Product(torch.autograd.Function):
    """a b forward, its two gradients backward. The inputs are handed views of these in place of theirs."""

    @staticmethod
    def forward(ctx, a, b, *inputs):
        ctx.a, ctx.b, ctx.shapes = a, b, [tensor.shape for tensor in inputs]
        return a @ b

    @staticmethod
    def backward(ctx, grad):
        gradients = [(grad @ ctx.b.T).flatten(), (ctx.a.T @ grad).flatten()]
        return None, None, *(_view(gradients, shape) for shape in ctx.shapes)


def _view(tensors: list[Tensor], shape: torch.Size) -> Tensor:
    """The start of a tensor that is large enough; of none, zeros in any memory."""
    large = next((one for one in tensors if one.numel() >= shape.numel()), None)
    return tensors[0].new_zeros(1).expand(shape) if large is None else large[: shape.numel()].view(shape)


def propagate(setup: Setup, edges: EdgeSet) -> dict[str, Implementation]:
    """Peers of propagate. PyG's convolutions know no edge weights: the same function only where all are 1."""
    nodes, types, dtype = edges.num_nodes, edges.num_types, setup.dtype
    matrices = [_csr(edges, edge_type, dtype) for edge_type in range(types)]

    def loop(x, weight):
        return functools.reduce(torch.add, (a @ x @ w for a, w in zip(matrices, weight.unbind(), strict=True)))

    dense = functools.cache(lambda: torch.stack([a.to_dense() for a in matrices]))

    def by_einsum(x, weight):
        return torch.einsum("tij,jd,tde->ie", dense(), x, weight)

    row, column, values = torch.repeat_interleave(edges.indptr.diff()), edges.indices.long(), edges.values.to(dtype)
    ends, edge_types = torch.stack([column, row % nodes]), row // nodes

    def gather_and_add(x, weight):
        # One graph for the compiler: the definition looks at the edges' values, where every graph ends.
        sums = x.new_zeros(types * nodes, x.shape[1]).index_add(0, row, x[column] * values[:, None])
        return torch.einsum("tnd,tde->ne", sums.view(types, nodes, -1), weight)

    def by_pyg(name: str) -> Callable[..., Tensor]:
        @functools.cache
        def layer():
            import torch_geometric.nn

            make = getattr(torch_geometric.nn, name)
            module = make(setup.features, setup.features, types, aggr="add", root_weight=False, bias=False)
            return module.to(setup.device, dtype)

        # RGCNConv adds up in float32 whatever the dtype.
        return lambda x, weight: torch.func.functional_call(layer(), {"weight": weight}, (x, ends, edge_types)).to(
            dtype
        )

    unweighted = bool((edges.values == 1).all())
    rgcn = _optional("torch_geometric", by_pyg("RGCNConv"), checked=unweighted and _checked(setup))
    fast = _optional("torch_geometric", by_pyg("FastRGCNConv"), checked=unweighted and _checked(setup))
    return {
        "sparse CSR loop": Implementation(loop, peer=True, checked=_checked(setup)),
        "dense einsum": _fitting(
            setup, types * nodes**2, Implementation(by_einsum, peer=True, checked=_checked(setup))
        ),
        "PyG RGCNConv": rgcn,
        "PyG FastRGCNConv": _fitting(setup, len(row) * setup.features**2, fast),
        "torch.compile": compiled(gather_and_add, checked=_checked(setup)),
        "matrix product": _product(setup, int((edges.indptr.diff() > 0).sum()), setup.features, setup.features),
    }


def _csr(edges: EdgeSet, edge_type: int, dtype: torch.dtype) -> Tensor:
    """The adjacency matrix of one type."""
    nodes = edges.num_nodes
    rows = edges.indptr[edge_type * nodes : (edge_type + 1) * nodes + 1]
    own = slice(int(rows[0]), int(rows[-1]))
    parts = (rows - rows[0]).int(), edges.indices[own], edges.values[own].to(dtype)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Sparse CSR tensor support is in beta", UserWarning)
        return torch.sparse_csr_tensor(*parts, size=(nodes, nodes), check_invariants=False)


def propagate_regions(setup: Setup, boxes: Tensor, ptr: Tensor, bandwidth: float = 50.0) -> dict[str, Implementation]:
    """Peers of propagate_regions."""
    image, rank, most = _image_and_rank(ptr)
    images = len(ptr) - 1
    wide = boxes.to(_wide(setup))
    padded = wide.new_zeros(images, most, 4).index_put((image, rank), wide)
    real = torch.arange(most, device=boxes.device) < ptr.diff()[:, None]
    pair = real[:, :, None] & real[:, None] & ~torch.eye(most, dtype=torch.bool, device=boxes.device)

    def by_einsum(x, weight):
        nodes = x.new_zeros(images, most, x.shape[1]).index_put((image, rank), x)
        adjacency = _adjacency(padded, pair, bandwidth).to(x.dtype)
        return torch.einsum("btij,bjd,tde->bie", adjacency, nodes, weight)[image, rank]

    return {
        "dense einsum": Implementation(by_einsum, peer=True, checked=_checked(setup)),
        "torch.compile": compiled(by_einsum, checked=_checked(setup)),
        "matrix product": _product(setup, 5 * len(boxes), setup.features, setup.features),
    }


def segment_matmul(setup: Setup, ptr: Tensor) -> dict[str, Implementation]:
    """Peers of segment_matmul."""
    counts, (image, rank, most) = ptr.diff().tolist(), _image_and_rank(ptr)

    def loop(x, other):
        return torch.cat([rows @ matrix for rows, matrix in zip(x.split(counts), other, strict=True)])

    def padded(x, other):
        rows = x.new_zeros(len(counts), most, x.shape[1]).index_put((image, rank), x)
        return torch.bmm(rows, other)[image, rank]

    return _segments(setup, loop, padded) | {"grouped_mm": _grouped(setup, ptr)}


def segment_outer(setup: Setup, ptr: Tensor) -> dict[str, Implementation]:
    """Peers of segment_outer."""
    counts, (image, rank, most) = ptr.diff().tolist(), _image_and_rank(ptr)

    def loop(x, y):
        return torch.stack([a.T @ b for a, b in zip(x.split(counts), y.split(counts), strict=True)])

    def padded(x, y):
        left, right = (t.new_zeros(len(counts), most, t.shape[1]).index_put((image, rank), t) for t in (x, y))
        return torch.bmm(left.mT, right)

    return _segments(setup, loop, padded)


def _grouped(setup: Setup, ptr: Tensor) -> Implementation:
    """PyTorch's own product of segments, where it takes the dtype, rows of so many bytes, and the device."""
    ends = ptr[1:].int()

    def grouped(x, other, ends=ends):
        return torch.nn.functional.grouped_mm(x, other, offs=ends)

    # It takes no float64, so it is not there to be compared in it; in float32 it is held to the budget.
    checked = setup.dtype == torch.float32
    shapes = ((1, setup.classes), (1, setup.classes, setup.features))
    x, other = (torch.zeros(s, dtype=setup.dtype, device=setup.device, requires_grad=True) for s in shapes)
    try:
        out = grouped(x, other, torch.ones_like(ends[:1]))
        torch.autograd.grad(out, (x, other), torch.zeros_like(out))
    except (AttributeError, RuntimeError) as error:  # an older torch; what it does not serve
        missing = f"torch {torch.__version__} cannot: {str(error).splitlines()[0]}"
        return Implementation(None, peer=True, checked=checked, missing=missing)
    return Implementation(grouped, peer=True, checked=checked)


def _segments(setup: Setup, loop: Callable[..., Tensor], padded: Callable[..., Tensor]) -> dict[str, Implementation]:
    return {
        "loop over images": Implementation(loop, peer=True, checked=_checked(setup)),
        "padded bmm": Implementation(padded, peer=True, checked=_checked(setup)),
        "torch.compile": compiled(padded, checked=_checked(setup)),
    }


def _adjacency(boxes: Tensor, pair: Tensor, bandwidth: float) -> Tensor:
    """[B, 5, M, M] of padded boxes [B, M, 4]: left, right, above, below, overlap, rows divided by their sums."""
    low, high = boxes.unflatten(2, (2, 2)).unbind(2)
    centre, side = (low + high) / 2, high - low
    dx, dy = (centre[:, None] - centre[:, :, None]).unbind(3)  # from i to j
    kappa = torch.exp(-torch.hypot(dx, dy) / bandwidth)
    shared = torch.minimum(high[:, None], high[:, :, None]) - torch.maximum(low[:, None], low[:, :, None])
    shared, area = shared.clamp(min=0).prod(3), side.prod(2)
    iou = shared / (area[:, None] + area[:, :, None] - shared)
    weights = torch.stack([kappa * (dx < 0), kappa * (dx > 0), kappa * (dy < 0), kappa * (dy > 0), iou], 1)
    weights = torch.where(pair[:, None], weights, 0)
    total = weights.sum(3, keepdim=True)
    return weights / torch.where(total > 0, total, 1)


def compiled(function: Callable[..., Tensor], checked: bool = True) -> Implementation:
    """torch.compile of a function."""
    return compiled_by(lambda: torch.compile(function), checked)


def compiled_by(compile: Callable[[], Callable[..., Tensor]], checked: bool = True) -> Implementation:
    """What `compile` returns, compiled within the first call."""

    @functools.cache
    def compiled_function() -> Callable[..., Tensor]:
        from torch._functorch import config

        config.donated_buffer = False  # else a forward pass allows a single backward pass; it is read in both
        # Dynamo counts compilations per line of source and gives up, silently, after some: each case starts anew.
        torch.compiler.reset()
        return compile()

    return Implementation(lambda *inputs: compiled_function()(*inputs), peer=True, checked=checked)


def _optional(package: str, call: Callable[..., Tensor], checked: bool) -> Implementation:
    """A peer from a package of the extra `peers`."""
    if importlib.util.find_spec(package) is None:
        missing = f"{package} is not installed: pip install irnet[peers]"
        return Implementation(None, peer=True, checked=checked, missing=missing)
    return Implementation(call, peer=True, checked=checked)


def _fitting(setup: Setup, numbers: int, implementation: Implementation) -> Implementation:
    """The implementation, unless it materialises more numbers than MOST allows."""
    size = numbers * setup.dtype.itemsize
    if implementation.call is None or size <= MOST[setup.device.type]:
        return implementation
    missing = f"would materialise {size / 2**30:.1f} GiB on every call: take a smaller graph by --sweep"
    return Implementation(None, peer=True, checked=implementation.checked, missing=missing)


def _wide(setup: Setup) -> torch.dtype:
    """The dtype of positions: float64 for float64, else float32."""
    return torch.promote_types(setup.dtype, torch.float32)


def _checked(setup: Setup) -> bool:
    return setup.dtype in (torch.float32, torch.float64)


def _normalised(position: Tensor, cells: int) -> Tensor:
    """Positions in cells as grid_sample wants them: -1 and 1 are the centres of the outermost cells."""
    return 2 * position / max(cells - 1, 1) - 1


def _image_and_rank(ptr: Tensor) -> tuple[Tensor, Tensor, int]:
    """Of every region its image and its index within that, and the largest number of regions of an image."""
    counts = ptr.diff()
    image = torch.repeat_interleave(counts)
    rank = torch.arange(len(image), device=ptr.device) - ptr[image]
    return image, rank, max(counts.tolist(), default=0)
