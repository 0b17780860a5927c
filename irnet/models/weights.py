"""Where weights of torchvision's and timm's models lie on this machine. Downloads nothing."""

import os
import re
from pathlib import Path

import torch

from ..errors import InputError


def find_weights(given: str) -> Path:
    """The checkpoint file that `given` names: a path, or a model whose weights PyTorch's or Hugging Face's cache has.

    A model is named as torchvision does ("resnet101"), as its file there is ("resnet101-cd907fc2"), or as timm does
    ("resnet101.a1h_in1k", "timm/resnet101.a1h_in1k"). InputError where a name has no file here, or several.
    """
    path = Path(given)
    name = given.removeprefix("timm/")
    if path.exists() or not re.fullmatch(r"\w[\w.-]*", name) or path.suffix in (".pth", ".pt", ".safetensors", ".bin"):
        return path
    checkpoints, hub = Path(torch.hub.get_dir()) / "checkpoints", _hugging_face()
    matches = []
    if not given.startswith("timm/"):
        matches = [*checkpoints.glob(f"{name}.pth"), *checkpoints.glob(f"{name}-" + "[0-9a-f]" * 8 + ".pth")]
    snapshots = sorted((hub / f"models--timm--{name}" / "snapshots").glob("*/"))
    files = [path for folder in snapshots for path in (folder / "model.safetensors", folder / "pytorch_model.bin")]
    matches += [path for path in files if path.is_file()][:1]
    if not matches:
        trouble = f"is no file, and neither {checkpoints} nor {hub} has weights of a model of that name"
        cure = "give a checkpoint file, or let torchvision or timm fetch the weights once (nothing is downloaded here)"
        raise InputError(given, trouble, cure)
    if len(matches) > 1:
        raise InputError(given, f"names several files: {', '.join(map(str, matches))}", "give the path of one of them")
    return matches[0]


def _hugging_face() -> Path:
    """The folder of Hugging Face's cache, where timm keeps weights."""
    home = Path(os.path.expanduser(os.environ.get("XDG_CACHE_HOME") or "~/.cache"))
    home = Path(os.environ.get("HF_HOME") or home / "huggingface")
    return Path(os.environ.get("HF_HUB_CACHE") or home / "hub")
