"""Names of models stand for the weights in the user's caches, and for nothing where these have none."""

import pytest
import torch

from irnet.config import ModelConfig
from irnet.errors import InputError
from irnet.models.backbone import build
from irnet.models.weights import find_weights


@pytest.fixture(autouse=True)
def caches(tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    for name in ("HF_HOME", "HF_HUB_CACHE"):
        monkeypatch.delenv(name, raising=False)
    return tmp_path


def touch(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"")
    return path


def test_names_of_torchvision(caches):
    folder = caches / "torch/hub/checkpoints"
    second = touch(folder / "resnet101-cd907fc2.pth")
    touch(folder / "resnet101-cd907fc2.pth.partial")
    touch(folder / "resnet101_a1h-36d3f2aa.pth")
    assert find_weights("resnet101") == second == find_weights("resnet101-cd907fc2")
    assert find_weights("resnet101_a1h").name == "resnet101_a1h-36d3f2aa.pth"
    first = touch(folder / "resnet101-63fe2227.pth")
    with pytest.raises(InputError, match="resnet101: names several files: ") as caught:
        find_weights("resnet101")
    assert str(first) in str(caught.value) and str(second) in str(caught.value)
    assert find_weights("resnet101-63fe2227") == first


@pytest.mark.parametrize("place", ["default", "HF_HOME", "HF_HUB_CACHE"])
def test_names_of_timm(caches, monkeypatch, place):
    hub = caches / {"default": "cache/huggingface/hub", "HF_HOME": "own/hub", "HF_HUB_CACHE": "hub"}[place]
    if place != "default":
        monkeypatch.setenv(place, str(hub.parent if place == "HF_HOME" else hub))
    path = touch(hub / "models--timm--resnet101.a1h_in1k/snapshots/0123/model.safetensors")
    touch(path.with_name("pytorch_model.bin"))
    assert find_weights("timm/resnet101.a1h_in1k") == path == find_weights("resnet101.a1h_in1k")


def test_paths_stay_paths(caches, monkeypatch):
    monkeypatch.chdir(caches)
    touch(caches / "torch/hub/checkpoints/resnet101-cd907fc2.pth")
    assert find_weights("mine/resnet101").as_posix() == "mine/resnet101"
    assert find_weights("resnet101.pth").name == "resnet101.pth"
    own = touch(caches / "resnet101")
    assert find_weights("resnet101").resolve() == own


def test_a_name_without_weights_is_one_line(caches):
    with pytest.raises(InputError) as caught:
        build(ModelConfig(backbone="resnet50", backbone_weights="resnet50"))
    assert str(caught.value).startswith("resnet50: is no file, and neither ") and "\n" not in str(caught.value)
    assert "nothing is downloaded" in caught.value.cure
    assert not list(caches.iterdir())


def test_the_weights_of_a_name_are_loaded(caches):
    model = build(ModelConfig(backbone="resnet50"))
    path = touch(caches / "torch/hub/checkpoints/resnet50-11ad3fa6.pth")
    torch.save(model.state_dict(), path)
    loaded = build(ModelConfig(backbone="resnet50", backbone_weights="resnet50"))
    assert torch.equal(loaded.layer4[2].conv3.weight, model.layer4[2].conv3.weight)


def test_without_a_home_the_cache_is_empty(caches, monkeypatch):
    for name in ("HOME", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("pwd.getpwuid", {}.__getitem__)
    with pytest.raises(InputError, match="resnet101: is no file, and neither "):
        find_weights("resnet101")
