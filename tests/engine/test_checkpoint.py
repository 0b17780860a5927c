"""Checkpoints: what goes in comes out, damage is told, and nothing in a file can run."""

import ast
import json
import logging
import pickle
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

import irnet
import irnet_kernels
from irnet import config as settings
from irnet.backbone import build, load_weights
from irnet.engine import checkpoint
from irnet.engine.checkpoint import BEST, LAST, PREVIOUS, Checkpoint
from irnet.engine.train import make_optimizer
from irnet.errors import InputError


def made(step: int = 3) -> Checkpoint:
    config = settings.small()
    config.model.hidden, config.train.lr_steps = 7, [5, 6]
    model = {
        "weight": torch.randn(3, 4),
        "turned": torch.randn(4, 3).T,
        "half": torch.randn(2, dtype=torch.bfloat16),
        "count": torch.tensor(2**40),
        "none": torch.empty(0, 4),
    }
    moments = {"weight.exp_avg": torch.randn(3, 4, dtype=torch.float64), "weight.step": torch.tensor(3.0)}
    return Checkpoint(step, config, ["a", "ä; 'b'"], model, moments, {"best": 0.25, "scaler": {}})


@pytest.fixture
def run(tmp_path) -> Path:
    """A folder with checkpoints of steps 1 (previous) and 2 (last)."""
    for step in (1, 2):
        checkpoint.save(tmp_path / "checkpoints" / LAST, made(step))
    return tmp_path


def test_round_trip(tmp_path):
    saved = made()
    checkpoint.save(tmp_path / "x.safetensors", saved)
    found = checkpoint.load(tmp_path / "x.safetensors")
    for name in ("step", "config", "classes", "extra"):
        assert getattr(found, name) == getattr(saved, name)
    for name in ("model", "optimizer"):
        one, two = getattr(found, name), getattr(saved, name)
        assert one.keys() == two.keys()
        assert all(torch.equal(one[key], two[key]) and one[key].dtype == two[key].dtype for key in one)
    assert found.source == tmp_path / "x.safetensors"


def test_last_keeps_the_previous_and_best_does_not(run):
    folder = run / "checkpoints"
    assert [checkpoint.load(folder / name).step for name in (LAST, PREVIOUS)] == [2, 1]
    for step in (1, 2):
        checkpoint.save(folder / BEST, made(step))
    assert sorted(p.name for p in folder.iterdir()) == [BEST, LAST, PREVIOUS]
    assert checkpoint.load(folder / PREVIOUS).step == 1


def test_file_has_the_rights_of_other_files(run):
    (run / "other").write_text("")
    assert (run / "checkpoints" / LAST).stat().st_mode == (run / "other").stat().st_mode


@pytest.mark.parametrize("keep", [0, 4, 8, 100, -40, -1])
def test_cut_short(run, keep):
    path = run / "checkpoints" / LAST
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(InputError) as caught:
        checkpoint.load(path)
    assert str(path) in str(caught.value) and "is truncated or no checkpoint" in str(caught.value)


def test_find_goes_back_to_the_previous_and_says_so(run, caplog):
    last = run / "checkpoints" / LAST
    last.write_bytes(last.read_bytes()[:-1])
    with caplog.at_level(logging.WARNING, "irnet"):
        assert checkpoint.find(run).step == 1
    assert str(last) in caplog.text and "using previous.safetensors" in caplog.text
    (run / "checkpoints" / PREVIOUS).write_bytes(b"")
    with pytest.raises(InputError, match="is truncated"):
        checkpoint.find(run)


def test_find(run, caplog):
    assert checkpoint.find(run).step == 2 and not caplog.text
    assert checkpoint.find(run, BEST).step == 2
    assert "best.safetensors: not there" in caplog.text
    assert checkpoint.find(run / "checkpoints" / PREVIOUS).step == 1
    (run / "checkpoints" / LAST).unlink()  # killed between two renames
    assert checkpoint.exists(run) and checkpoint.find(run).step == 1
    (run / "checkpoints" / PREVIOUS).rename(run / "checkpoints" / ".last.safetensors.tmp")
    assert not checkpoint.exists(run)
    for place in (run, run / "nowhere"):
        with pytest.raises(InputError, match="holds no checkpoint"):
            checkpoint.find(place)


def test_foreign_files(tmp_path):
    path = tmp_path / "x.safetensors"
    save_file({"a": torch.zeros(2)}, path)
    with pytest.raises(InputError, match="is not of the form"):
        checkpoint.load(path)
    save_file({"a": torch.zeros(2)}, path, {"format": checkpoint.FORMAT, "step": "3", "config": "{}"})
    with pytest.raises(InputError, match="damaged header"):
        checkpoint.load(path)
    header = {key: json.dumps(value) for key, value in (("step", 3), ("classes", []), ("extra", {}))}
    save_file({}, path, {"format": checkpoint.FORMAT, **header, "config": '{"model": {"widht": 3}}'})
    with pytest.raises(InputError, match=r"unknown config key 'model.widht'"):
        checkpoint.load(path)


class Payload:
    def __init__(self, mark: Path):
        self.mark = mark

    def __reduce__(self):
        return Path.touch, (self.mark,)


@pytest.mark.parametrize("form", ["pickle", "torch"])
def test_nothing_in_a_file_is_executed(form, tmp_path):
    mark, path = tmp_path / "executed", tmp_path / "run/checkpoints" / LAST
    path.parent.mkdir(parents=True)
    if form == "pickle":
        path.write_bytes(pickle.dumps(Payload(mark), protocol=2))
    else:
        torch.save({"model": Payload(mark)}, path)
    for place in (path, path.parents[1]):
        with pytest.raises(InputError, match="no checkpoint"):
            checkpoint.find(place)
    with pytest.raises(InputError, match="cannot be read"):
        load_weights(build(settings.ModelConfig(backbone="small")), path.rename(tmp_path / "x.pth"))
    assert not mark.exists()
    with open(tmp_path / "x.pth", "rb") as file:  # the payload does work where something runs it
        torch.load(file, weights_only=False) if form == "torch" else pickle.load(file)
    assert mark.exists()


def test_no_code_unpickles():
    """No call that unpickles or executes data; torch.load only where it reads plain tensors."""
    forbidden = {"eval", "exec", "pickle.load", "pickle.loads", "torch.save", "yaml.load", "marshal.loads"}
    read, plain = 0, 0
    for package in (irnet, irnet_kernels):
        for path in Path(package.__file__).parent.rglob("*.py"):
            read += 1
            for node in ast.walk(ast.parse(path.read_text())):
                if isinstance(node, ast.ImportFrom):
                    assert node.module not in ("pickle", "dill", "joblib", "shelve", "marshal"), path
                if not isinstance(node, ast.Call):
                    continue
                name, options = ast.unparse(node.func), {k.arg: ast.unparse(k.value) for k in node.keywords}
                assert name not in forbidden, f"{path}:{node.lineno}: {name}"
                assert options.get("allow_pickle", "False") == "False", path
                if name == "torch.load":
                    plain += 1
                    assert options.get("weights_only") == "True", path
    assert read > 30 and plain == 1


@pytest.mark.parametrize("name", ["sgd", "adamw"])
def test_optimizer_goes_on_as_if_never_stopped(name):
    def model():
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 1))

    def steps(module, optimizer, count):
        for _ in range(count):
            optimizer.zero_grad()
            module(torch.ones(2, 3)).square().sum().backward()
            optimizer.step()

    config = settings.TrainConfig(optimizer=name, lr=0.1)
    whole = model()
    optimizer, _ = make_optimizer(whole, config)
    steps(whole, optimizer, 3)
    tensors = checkpoint.optimizer_tensors(optimizer, dict(whole.named_parameters()))
    kinds = {key.rpartition(".")[2] for key in tensors}
    assert kinds == ({"momentum_buffer"} if name == "sgd" else {"step", "exp_avg", "exp_avg_sq"})
    tensors = {key: value.clone() for key, value in tensors.items()}
    other = model()
    other.load_state_dict(whole.state_dict())
    steps(whole, optimizer, 2)
    restored, _ = make_optimizer(other, config)
    checkpoint.restore_optimizer(restored, dict(other.named_parameters()), tensors)
    steps(other, restored, 2)
    assert all(torch.equal(a, b) for a, b in zip(whole.parameters(), other.parameters(), strict=True))
