"""Compares irnet with the authors' program, `python -m irnet.parity FILE.npz ...`: reads their outputs, trains nothing.

A file `local_*.npz` holds weights, inputs, outputs and gradients of the authors' local module and attention; a file
`metrics_*.npz` holds scores and the figures of their evaluation. Each output's and gradient's largest absolute error is
printed, and relative to the tensor's largest value; the exit code is 1 where one relative error exceeds the bound.
"""

import argparse
import math
import sys
import zipfile
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from irnet_kernels.roi.reference import coverage

from . import losses, metrics
from .backbone import STRIDE
from .config import LossConfig, ModelConfig
from .errors import InputError
from .model import IRNet

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


class PatchMean(nn.Module):
    """Stands in for a ConvNet where the file gives the feature map: a region's feature is the mean over its patch."""

    def __init__(self, channels: int):
        super().__init__()
        self.channels = self.feature_channels = channels

    def head(self, patches: Tensor) -> Tensor:
        """[R, F, P, P] -> [R, F]."""
        return patches.mean((2, 3))


def compare_local(file: dict[str, np.ndarray], dtype: torch.dtype) -> dict[str, tuple[Tensor, Tensor]]:
    """name -> (ours, theirs) for every output and gradient of a local_*.npz file."""
    model = load_model(file, dtype)
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
    for i, (name, logits) in enumerate(predictions.logits.items()):
        ours[f"cls_score_{i}"] = logits
        ours[f"confid_{i}"] = predictions.confidences[i][:, None]
        ours[f"attend_{i}"] = predictions.attention[i][:, None]
        ours[f"memory_{i}"] = predictions.memories[i].permute(0, 2, 3, 1)
        if name in loss.weights:
            ours[f"weights_{i}"] = loss.weights[name]
    ours = {f"out/{name}": value for name, value in ours.items()}
    parameters = dict(model.named_parameters())
    for theirs, name in VARIABLES.items():
        ours[f"grad/{theirs}"] = _to_authors(parameters[name].grad, name)
    ours["grad/feature"] = feature.grad.permute(0, 2, 3, 1)
    recorded = {name: torch.from_numpy(value) for name, value in file.items() if name.startswith(("out/", "grad/"))}
    return {name: (ours[name], value) for name, value in recorded.items()}


def compare_metrics(file: dict[str, np.ndarray], dtype: torch.dtype) -> dict[str, tuple[Tensor, Tensor]]:
    """name -> (ours, theirs) for the six figures of a metrics_*.npz file."""
    scores = torch.from_numpy(file["scores"]).to(dtype)
    figures = metrics.evaluate(scores, torch.from_numpy(file["labels"]), background=0)
    figures["instance_ap_ranked_by_ground_truth"] = figures["instance_ap_gt_ranked"]
    return {
        name: (torch.tensor(figures[name]), torch.tensor(value))
        for name, value in zip(file["expected_names"].tolist(), file["expected"].tolist(), strict=True)
    }


def load_model(file: dict[str, np.ndarray], dtype: torch.dtype) -> IRNet:
    """A local model with the file's weights; every size is read off their shapes."""
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
    features, classes = file["var/base/cls_score/weights"].shape
    model = IRNet(config, classes, trunk=PatchMean(features)).to(dtype)
    model.load_state_dict(
        {ours: _from_authors(torch.from_numpy(file[f"var/{theirs}"]), ours) for theirs, ours in VARIABLES.items()}
    )
    return model


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m irnet.parity", description=__doc__.split("\n\n")[0])
    parser.add_argument("files", nargs="+", metavar="FILE.npz")
    parser.add_argument("--dtype", choices=["float64", "float32"], default="float64")
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
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise InputError(
            path, f"cannot be read ({error})", "give a file as the authors' program recorded it"
        ) from error
    compare = compare_metrics if "expected_names" in file else compare_local
    try:
        pairs = compare(file, dtype)
    except KeyError as error:
        raise InputError(path, f"has no entry {error}", "give a local_*.npz or metrics_*.npz file") from error
    print(f"{Path(path).name} ({str(dtype).removeprefix('torch.')})\n{'absolute':>10} {'relative':>10}")
    failed = 0
    for name, (ours, theirs) in pairs.items():
        absolute, relative = errors(ours, theirs)
        bad = not relative <= BOUNDS[dtype]
        failed += bad
        print(f"{absolute:10.1e} {relative:10.1e}  {name}{'  TOO LARGE' if bad else ''}")
    return failed


def errors(ours: Tensor, theirs: Tensor) -> tuple[float, float]:
    """The largest absolute error, and relative to the largest value of `theirs` (absolute where that is all zero)."""
    if ours.shape != theirs.shape:
        raise ValueError(f"shapes differ: {list(ours.shape)} and {list(theirs.shape)}")
    ours, theirs = ours.detach().double(), theirs.double()
    absolute = (ours - theirs).abs().max().item()
    largest = theirs.abs().max().item()
    return absolute, absolute / (largest or 1.0)


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
