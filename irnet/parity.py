"""Compares irnet with the authors' program, `python -m irnet.parity FILE.npz ...`: reads their outputs, trains nothing.

A file `local_*.npz` holds weights, inputs, outputs and gradients of the authors' local module and attention; a file
`metrics_*.npz` holds scores and the figures of their evaluation. Arrays have TensorFlow's layouts (maps NHWC, kernels
HWIO, FC weights [in, out]). Of a local file, for one image, R regions and I iterations:

    var/NAME                       every variable of VARIABLES, by the authors' name
    in/feature, in/memory_size     the map that stands in for a ConvNet's [1, H, W, F], and (H, W)
    in/gt_boxes                    [R, 5], (x1, y1, x2, y2, label) in pixels; a cell of the map is 16 pixels
    out/cls_score_i, confid_i, attend_i, memory_i   logits, confidences, attention and memory, for i = 0 .. I
    out/weights_i                  weights of the regions in the loss, for i = 1 .. I
    out/attend_cls_score, attend_cls_prob, count_matrix   mixed logits and scores, regions that cover a cell
    out/loss, loss_image, loss_memory, loss_final   the loss without weight decay, and its parts
    grad/NAME, grad/feature        gradient of out/loss for every variable and for the map

A region's ConvNet feature is the mean over its patch of that map. Of a metrics file: scores [R, C] with class 0 the
background, labels [R], and expected_names and expected, six figures and their names.

Each output's and gradient's largest absolute error is printed, and relative to the tensor's largest value; the exit
code is 1 where one relative error exceeds the bound, and 2 where a file cannot be read or lacks an entry.
"""

import argparse
import math
import struct
import sys
import tokenize
import zipfile
import zlib
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from irnet_kernels.roi.reference import coverage

from . import metrics
from .config import LossConfig, ModelConfig
from .errors import InputError
from .models import losses
from .models.backbone import STRIDE
from .models.irnet import IRNet
from .options import tell_defaults

RECORDED = "give a local_*.npz or metrics_*.npz file as the authors' program recorded it"
# What np.load raises for files that are no archive, or a damaged one.
DAMAGE = (
    *(OSError, ValueError, TypeError, EOFError, RuntimeError, SyntaxError, LookupError),
    *(zipfile.BadZipFile, zlib.error, struct.error, tokenize.TokenError),
)
BOUNDS = {torch.float64: 2e-5, torch.float32: 1e-4}

# The authors' variable -> ours. Convolutions are HWIO there and OIHW here, FC weights [in, out] there, [out, in] here.
VARIABLES = {
    "base/cls_score/weights": "classifier.weight",
    "base/cls_score/biases": "classifier.bias",
    "SMN/mem_init/mem_init": "local.initial",
    "SMN/bottom_top/pool5_comp/weights": "local.map_patch.weight",
    "SMN/bottom_top/pool5_comp/biases": "local.map_patch.bias",
    "SMN/bottom_top/map_prob/weights": "local.map_logits.weight",
    "SMN/pool5_input/conv02/weights": "local.input.weight",
    "SMN/pool5_input/conv02/biases": "local.input.bias",
    "SMN/mem_update/input_p/weights": "local.gru.new_x",
    "SMN/mem_update/input_m/weights": "local.gru.new_h",
    "SMN/mem_update/reset_p/weights": "local.gru.reset_x",
    "SMN/mem_update/reset_m/weights": "local.gru.reset_h",
    "SMN/mem_update/update_p/weights": "local.gru.update_x",
    "SMN/mem_update/update_m/weights": "local.gru.update_h",
    "SMN/mem_update/input_p/biases": "local.gru.new_bias",
    "SMN/mem_update/reset_p/biases": "local.gru.reset_bias",
    "SMN/mem_update/update_p/biases": "local.gru.update_bias",
    "SMN/context/conv1/weights": "local.context.0.weight",
    "SMN/context/conv1/biases": "local.context.0.bias",
    "SMN/context/conv02/weights": "local.context.1.weight",
    "SMN/context/conv02/biases": "local.context.1.bias",
    "SMN/context/conv03/weights": "local.context.2.weight",
    "SMN/context/conv03/biases": "local.context.2.bias",
    "SMN/fc7/mem_fc6/weights": "local.read1.weight",
    "SMN/fc7/mem_fc6/biases": "local.read1.bias",
    "SMN/fc7/mem_fc7/weights": "local.read2.weight",
    "SMN/fc7/mem_fc7/biases": "local.read2.bias",
    "SMN/cls_iter/cls_score_mem/weights": "local.classifier.weight",
    "SMN/cls_iter/cls_score_mem/biases": "local.classifier.bias",
    "SMN/confid_iter/confid_mem/weights": "local.confidence.weight",
}


# What a local_*.npz file may leave out: boxes as TensorFlow takes them, which say nothing of the model.
OPTIONAL = ("out/rois", "out/inv_rois")


class PatchMean(nn.Module):
    """Stands in for a ConvNet where the file gives the feature map: a region's feature is the mean over its patch."""

    def __init__(self, channels: int):
        super().__init__()
        self.channels = self.feature_channels = channels

    def head(self, patches: Tensor) -> Tensor:
        """[R, F, P, P] -> [R, F]."""
        return patches.mean((2, 3))


def compare_local(file: dict[str, np.ndarray], dtype: torch.dtype) -> dict[str, tuple[Tensor, Tensor]]:
    """name -> (ours, theirs) for every output and gradient of a local_*.npz file.

    KeyError for a missing entry, ValueError for entries that are unknown or do not fit one another.
    """
    model = load_model(file, dtype)
    _check_inputs(file, *file["var/base/cls_score/weights"].shape)
    feature = torch.from_numpy(file["in/feature"]).to(dtype).permute(0, 3, 1, 2).requires_grad_()
    boxes = torch.from_numpy(file["in/gt_boxes"][:, :4]).float()
    labels = torch.from_numpy(file["in/gt_boxes"][:, 4]).long()
    ptr = torch.tensor([0, len(boxes)])
    height, width = (int(n) for n in file["in/memory_size"])

    predictions = model.reason(feature, boxes, ptr)
    loss = losses.compute(predictions, labels, ptr, LossConfig())
    loss.total.backward()

    ours = {
        "loss": loss.total,
        "loss_image": loss.conv,
        "loss_memory": loss.modules["local"],
        "loss_final": loss.final,
        "attend_cls_score": predictions.final,
        "attend_cls_prob": predictions.final.softmax(1),
        "count_matrix": coverage(boxes / STRIDE, ptr, model.config.patch_size, height, width)[..., None],
        "rois": _normalised_rois(boxes, height, width),
        "inv_rois": _inverse_rois(boxes, height, width),
    }
    for i, (key, logits) in enumerate(predictions.logits.items()):
        ours[f"cls_score_{i}"] = logits
        ours[f"confid_{i}"] = predictions.confidences[i][:, None]
        ours[f"attend_{i}"] = predictions.attention[i][:, None]
        ours[f"memory_{i}"] = predictions.memories[i].permute(0, 2, 3, 1)
        if key in loss.weights:
            ours[f"weights_{i}"] = loss.weights[key]
    ours = {f"out/{name}": value for name, value in ours.items()}
    parameters = dict(model.named_parameters())
    for theirs, name in VARIABLES.items():
        ours[f"grad/{theirs}"] = _to_authors(parameters[name].grad, name)
    ours["grad/feature"] = feature.grad.permute(0, 2, 3, 1)
    return _pair(ours, {name: value for name, value in file.items() if name.startswith(("out/", "grad/"))}, OPTIONAL)


def compare_metrics(file: dict[str, np.ndarray], dtype: torch.dtype) -> dict[str, tuple[Tensor, Tensor]]:
    """name -> (ours, theirs) for the six figures of a metrics_*.npz file."""
    scores = torch.from_numpy(file["scores"]).to(dtype)
    figures = metrics.evaluate(scores, torch.from_numpy(file["labels"]).long(), background=0)
    figures["instance_ap_ranked_by_ground_truth"] = figures.pop("instance_ap_gt_ranked")
    ours = {name: torch.tensor(value, dtype=torch.float64) for name, value in figures.items()}
    return _pair(ours, dict(zip(file["expected_names"].tolist(), file["expected"], strict=True)), ("instance_ap",))


def load_model(file: dict[str, np.ndarray], dtype: torch.dtype) -> IRNet:
    """A local model with the file's weights; every size is read off their shapes.

    KeyError for a missing variable, ValueError for one that irnet does not know or that does not fit the others.
    """
    unknown = [name for name in file if name.startswith("var/") and name.removeprefix("var/") not in VARIABLES]
    if unknown:
        raise ValueError(f"holds the variable {unknown[0]}, which irnet has no place for")
    variables = {ours: torch.from_numpy(file[f"var/{theirs}"]) for theirs, ours in VARIABLES.items()}
    misfit = [name for name, dims in (("initial", 4), ("read1.weight", 2)) if variables[f"local.{name}"].dim() != dims]
    if misfit:
        raise ValueError(f"holds a variable local.{misfit[0]} of the wrong number of dimensions")
    initial, read = file["var/SMN/mem_init/mem_init"], file["var/SMN/fc7/mem_fc6/weights"]
    config = ModelConfig(
        variant="local",
        iterations=sum(name.startswith("out/cls_score_") for name in file) - 1,
        patch_size=math.isqrt(read.shape[0] // initial.shape[3]),
        memory_channels=initial.shape[3],
        memory_size=initial.shape[1],
        gate_channels=file["var/SMN/mem_update/reset_p/biases"].shape[0],
        hidden=read.shape[1],
    )
    if config.iterations < 1:
        raise ValueError("records no iteration (out/cls_score_0, out/cls_score_1, ...)")
    features, classes = file["var/base/cls_score/weights"].shape
    model = IRNet(config, classes, trunk=PatchMean(features)).to(dtype)
    # Theirs need not be square.
    model.local.initial = nn.Parameter(_from_authors(variables["local.initial"], "local.initial").to(dtype))
    try:
        model.load_state_dict({ours: _from_authors(weight, ours) for ours, weight in variables.items()})
    except RuntimeError as error:
        raise ValueError(f"holds variables that do not fit one another ({error})") from error
    return model


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m irnet.parity", description=__doc__.split("\n\n")[0])
    parser.add_argument("files", nargs="+", metavar="FILE.npz", help="what the authors' program computed")
    parser.add_argument("--dtype", choices=["float64", "float32"], default="float64", help="in which irnet computes")
    tell_defaults(parser)
    options = parser.parse_args(arguments)
    dtype = getattr(torch, options.dtype)
    failed = 0
    try:
        for path in options.files:
            failed += _report(path, dtype)
    except InputError as error:
        print(f"irnet.parity: {error}", file=sys.stderr)
        return 2
    print("passed" if not failed else f"failed: {failed} beyond {BOUNDS[dtype]:g}")
    return 1 if failed else 0


def _report(path: str, dtype: torch.dtype) -> int:
    """Print one line per tensor of a file; return how many exceed the bound."""
    try:
        with np.load(path) as archive:
            file = dict(archive)
    except DAMAGE as error:
        raise InputError(path, f"cannot be read ({_line(error)})", RECORDED) from error
    compare = compare_metrics if "expected_names" in file else compare_local
    try:
        pairs = compare(file, dtype)
    except KeyError as error:
        raise InputError(path, f"has no entry {error}", RECORDED) from error
    except (ValueError, TypeError) as error:
        raise InputError(path, _line(error), RECORDED) from error
    print(f"{Path(path).name} ({str(dtype).removeprefix('torch.')})\n{'absolute':>10} {'relative':>10}")
    failed = 0
    for name, (ours, theirs) in pairs.items():
        absolute, relative = errors(ours, theirs)
        bad = not relative <= BOUNDS[dtype]
        failed += bad
        print(f"{absolute:10.1e} {relative:10.1e}  {name}{'  TOO LARGE' if bad else ''}")
    return failed


def errors(ours: Tensor, theirs: Tensor) -> tuple[float, float]:
    """The largest absolute error, and relative to the largest value of `theirs` (absolute where that is all zero).

    Equal infinities differ by nothing; a NaN on either side gives NaN.
    """
    ours, theirs = ours.detach().double(), theirs.double()
    absolute = torch.where(ours == theirs, 0, (ours - theirs).abs()).max().item()
    largest = torch.where(theirs.isinf(), 0, theirs).abs().max().item()
    return absolute, absolute / (largest or 1.0)


def _pair(
    ours: dict[str, Tensor], theirs: dict[str, np.ndarray], optional: tuple[str, ...]
) -> dict[str, tuple[Tensor, Tensor]]:
    """name -> (ours, theirs); what only one side has, or has in another shape, raises instead of going uncompared."""
    unknown = [name for name in theirs if name not in ours]
    if unknown:
        raise ValueError(f"holds {unknown[0]}, which irnet has nothing to compare with")
    for name in ours:
        if name not in theirs and name not in optional:
            raise KeyError(name)
    for name, value in theirs.items():
        if ours[name].shape != value.shape:
            raise ValueError(f"holds {name} of shape {list(value.shape)} where irnet gives {list(ours[name].shape)}")
    return {name: (ours[name], torch.as_tensor(value)) for name, value in theirs.items()}


def _check_inputs(file: dict[str, np.ndarray], features: int, classes: int) -> None:
    feature, boxes, size = file["in/feature"], file["in/gt_boxes"], file["in/memory_size"]
    if feature.ndim != 4 or feature.shape[0] != 1 or feature.shape[3] != features:
        raise ValueError(f"holds in/feature of shape {list(feature.shape)} where [1, H, W, {features}] fits")
    if boxes.ndim != 2 or boxes.shape[1] != 5 or not len(boxes):
        raise ValueError(f"holds in/gt_boxes of shape {list(boxes.shape)} where [R, 5] with R > 0 fits")
    if not (boxes[:, 4].min() >= 0 and boxes[:, 4].max() < classes):
        raise ValueError(f"holds labels outside 0 .. {classes - 1} in in/gt_boxes")
    if size.tolist() != list(feature.shape[1:3]):
        raise ValueError(f"holds in/memory_size {size.tolist()} where in/feature is {list(feature.shape)}")


def _line(error: Exception) -> str:
    return " ".join(str(error).split())


def _from_authors(weight: Tensor, name: str) -> Tensor:
    if weight.dim() == 4:
        return weight.permute(0, 3, 1, 2) if name == "local.initial" else weight.permute(3, 2, 0, 1)
    return weight.T if weight.dim() == 2 else weight


def _to_authors(weight: Tensor, name: str) -> Tensor:
    if weight.dim() == 4:
        return weight.permute(0, 2, 3, 1) if name == "local.initial" else weight.permute(2, 3, 1, 0)
    return weight.T if weight.dim() == 2 else weight


def _normalised_rois(boxes: Tensor, height: int, width: int) -> Tensor:
    """(y1, x1, y2, x2) as fractions of the map from its first to its last cell, as TensorFlow takes them."""
    last = boxes.new_tensor([height - 1, width - 1, height - 1, width - 1]).double()
    return (boxes.double() / STRIDE)[:, [1, 0, 3, 2]] / last


def _inverse_rois(boxes: Tensor, height: int, width: int) -> Tensor:
    """The whole map as a box within each region's patch, with which the authors paste."""
    y1, x1, y2, x2 = _normalised_rois(boxes, height, width).unbind(1)
    return torch.stack([-y1 / (y2 - y1), -x1 / (x2 - x1), (1 - y1) / (y2 - y1), (1 - x1) / (x2 - x1)], 1)


if __name__ == "__main__":
    sys.exit(main())
