"""Weights, gradients and moments of which every process holds some rows: PyTorch's FSDP2, as far as runs know of it.

A tensor that is shared so is a DTensor with the shape of the whole, split along its first dimension. What FSDP2 brings
is imported within functions: torch.distributed.tensor alone takes seconds.
"""

import dataclasses
import functools
import itertools
import warnings
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.utils._pytree import register_dataclass

from ..errors import InputError
from ..models.irnet import IRNet
from ..models.predictions import Predictions
from . import distributed
from .distributed import is_sharded
from .step import AMP_DTYPES


def shard(model: IRNet, amp: str) -> None:
    """Leave to each process its rows of every weight, in place; a step gathers them and adds up gradients by rows.

    All weights are one group, which is gathered once in a step and reduced once. Those of a part of the model cannot be
    gathered by themselves: a share of a batch goes through the parts as often as it has sizes of images, and where
    processes differ in that, one waits for what another never sends.

    Args:
        model: Model on the device on which it is trained; that of rank 0 counts.
        amp: As `train.amp`: the dtype in which weights are gathered. Gradients are added up in float32.

    Raises:
        InputError: The model has a weight that cannot be split.
    """
    from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

    if name := one_number(model):
        trouble = f"cannot split a weight that is one number ({name})"
        raise InputError("--parallel fsdp", trouble, "use --parallel ddp, or model.learn_geometry=false")
    _show_outputs()
    for tensor in itertools.chain(model.parameters(), model.buffers()):
        dist.broadcast(tensor.detach(), src=0)
    dtype = AMP_DTYPES.get(amp)
    # Inputs stay as they are, or boxes would be rounded to whole pixels.
    policy = MixedPrecisionPolicy(dtype, torch.float32 if dtype else None, cast_forward_inputs=False)
    # Nothing changes predictions in place.
    warnings.filterwarnings("ignore", message="FSDP2-wrapped module .* returned a view tensor")
    sharded: Any = fully_shard(model, mp_policy=policy)
    # Each loss is a part of that of the whole batch. gloo knows no reduction that divides.
    sharded.set_gradient_divide_factor(1.0)
    sharded.set_force_sum_reduction_for_comms(True)


def one_number(model: IRNet) -> str:
    """The name of a weight that is one number, of which nobody can hold some rows; "" where there is none."""
    return next((name for name, parameter in model.named_parameters() if parameter.dim() == 0), "")


@functools.cache
def _show_outputs() -> None:
    """Let FSDP2 find the tensors of `Predictions`, behind whose gradients it reduces those of the weights.

    Up to torch 2.11 it looks with `tree_flatten`, which takes a dataclass that nobody has registered for one leaf.
    """
    register_dataclass(Predictions)


def spans(tensor: Tensor) -> list[tuple[int, int]]:
    """The rows of a tensor that each process holds, as the first and the one behind the last; of a plain one rank 0's.

    A number without a dimension counts as one row.
    """
    rows = tensor.shape[0] if tensor.dim() else 1
    count = distributed.count()
    if not is_sharded(tensor):
        return [(0, rows)] + [(rows, rows)] * (count - 1)
    each = -(-rows // count)
    return [(min(rank * each, rows), min((rank + 1) * each, rows)) for rank in range(count)]


def own_rows(tensor: Any) -> Tensor:
    """The rows of a tensor that this process holds; all of a plain one."""
    return tensor.to_local() if is_sharded(tensor) else tensor


def like(parameter: Any, whole: Tensor) -> Tensor:
    """A copy of `whole` on a parameter's device; of a shared one the rows that this process holds."""
    if not is_sharded(parameter):
        return whole.to(parameter.device, copy=True)
    from torch.distributed.tensor import DTensor

    begin, end = spans(parameter)[distributed.rank()]
    rows = whole[begin:end].to(parameter.device, copy=True)
    shape_and_stride = {"shape": parameter.shape, "stride": parameter.stride()}
    return DTensor.from_local(rows, parameter.device_mesh, parameter.placements, run_check=False, **shape_and_stride)


def whole(model: IRNet) -> IRNet:
    """Gather a model that `shard` split into a new one with all weights in full precision; all processes call it."""
    state = {name: t.full_tensor() if is_sharded(t) else t for name, t in model.state_dict().items()}
    config = dataclasses.replace(model.config, backbone_weights="")
    edges = None if model.graph is None else model.graph.class_graph
    with torch.device("meta"):
        unsharded = IRNet(config, model.classifier.out_features, edges, state.get("graph.word_vectors"))
    unsharded.load_state_dict(state, assign=True)
    return unsharded
