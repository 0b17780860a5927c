"""Checkpoints: what goes in comes out, damage is told, and nothing in a file can run."""

import ast
import dataclasses
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
from irnet.engine import checkpoint
from irnet.engine.build import restore_model
from irnet.engine.checkpoint import BEST, LAST, PREVIOUS, Checkpoint
from irnet.engine.optim import make_optimizer
from irnet.errors import InputError
from irnet.models.backbone import build, load_weights


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
    save_file({"a": torch.zeros(2)}, path, {"format": "irnet checkpoint 1", "step": "3"})
    with pytest.raises(InputError, match="was written by an older irnet"):
        checkpoint.load(path)
    save_file({"a": torch.zeros(2)}, path, {checkpoint.METADATA: "{}"})
    with pytest.raises(InputError, match="is not of the form"):
        checkpoint.load(path)


GOOD = {"format": checkpoint.FORMAT, "step": 3, "config": {}, "classes": ["a"], "extra": {}}


@pytest.mark.parametrize(
    ("header", "words"),
    [
        ("no JSON", "damaged header"),
        ("[" * 100_000, "damaged header"),
        ([1], "damaged header"),
        ({}, "damaged header"),
        (GOOD | {"format": "irnet checkpoint 1"}, "is not of the form"),
        (GOOD | {"step": "3"}, "damaged header"),
        (GOOD | {"step": -1}, "damaged header"),
        (GOOD | {"classes": []}, "damaged header"),
        (GOOD | {"classes": [1]}, "damaged header"),
        (GOOD | {"extra": None}, "damaged header"),
        (GOOD | {"config": None}, "does not hold sections"),
        (GOOD | {"config": {"model": {"widht": 3}}}, "unknown config key 'model.widht'"),
        (GOOD | {"config": {"model": {"hidden": 10**30}}}, "model.hidden is beyond"),
    ],
)
def test_header_that_is_no_header(header, words, tmp_path):
    path = tmp_path / "x.safetensors"
    checkpoint._write(path, header if isinstance(header, str) else json.dumps(header), {"model.a": torch.zeros(2)})
    with pytest.raises(InputError, match=words) as caught:
        checkpoint.load(path)
    assert str(caught.value).startswith(f"{path}: ")
    checkpoint._write(path, json.dumps(GOOD), {"model.a": torch.zeros(2)})
    assert checkpoint.load(path).step == 3


def test_any_flipped_byte_is_noticed(tmp_path):
    path = tmp_path / "x.safetensors"
    checkpoint.save(path, made())
    content = path.read_bytes()
    for at in [*range(0, len(content), 13), len(content) - 1]:
        path.write_bytes(content[:at] + bytes([content[at] ^ 1]) + content[at + 1 :])
        with pytest.raises(InputError, match=r"is damaged|truncated or no checkpoint|is not of the form"):
            checkpoint.load(path)
    path.write_bytes(content)
    assert checkpoint.load(path).step == 3


@pytest.mark.parametrize("part", ["model", "optimizer"])
@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_numbers_that_are_not_finite(part, value, run, caplog):
    bad = made(3)
    next(iter(getattr(bad, part).values())).view(-1)[5] = value
    checkpoint.save(run / "checkpoints" / LAST, bad)
    with pytest.raises(InputError, match=rf"not finite \({part}.weight"):
        checkpoint.load(run / "checkpoints" / LAST)
    assert checkpoint.find(run).step == 2


def test_same_state_gives_the_same_bytes(tmp_path):
    state = made()
    for i in range(6):
        state.model = dict(sorted(state.model.items(), reverse=i % 2 == 0))
        checkpoint.save(tmp_path / f"{i}.safetensors", state)
    assert len({path.read_bytes() for path in tmp_path.iterdir()}) == 1


def test_saving_takes_little_memory(tmp_path):
    """At most a tenth of the file beyond what is there, whatever the shapes and layouts."""
    state = made()
    sizes = {"wide": (2048, 4096), "maps": (512, 256, 3, 3), "list": (3_000_000,)}
    state.model = {name: torch.randn(size) for name, size in sizes.items()}
    state.model["maps"] = state.model["maps"].to(memory_format=torch.channels_last)
    state.optimizer = {f"{name}.exp_avg": t * 2 for name, t in state.model.items()}
    state.optimizer["wide.exp_avg"] = torch.randn(4096, 2048).T
    checkpoint.save(tmp_path / "warm.safetensors", made())
    Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
    before = memory("VmRSS")
    assert checkpoint.not_finite(state.model | state.optimizer) is None
    checkpoint.save(tmp_path / "x.safetensors", state)
    assert memory("VmHWM") - before < (tmp_path / "x.safetensors").stat().st_size / 10
    found = checkpoint.load(tmp_path / "x.safetensors")
    assert all(torch.equal(found.model[name], t) for name, t in state.model.items())
    assert torch.equal(found.optimizer["wide.exp_avg"], state.optimizer["wide.exp_avg"])


def memory(kind: str) -> int:
    """Bytes, from the system's account of this process."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(kind))
    return 1024 * int(line.split()[1])


def test_restored_model_is_not_the_file(trained, tmp_path):
    path = tmp_path / "x.safetensors"
    saved = checkpoint.find(trained)
    state = saved.model | {"graph.word_vectors": torch.randn(19, 3), "graph.class_projection.bias": torch.zeros(4)}
    state["graph.class_projection.weight"] = torch.zeros(4, 3)
    state.pop("graph.class_features")
    checkpoint.save(path, dataclasses.replace(saved, model=state))
    found = checkpoint.load(path)
    model = restore_model(found.config.model, len(found.classes), found.model, path)
    with open(path, "r+b") as file:  # in place, as cp does
        file.write(b"\0" * path.stat().st_size)
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, state[name]), name


def without(name):
    return lambda state: state.pop(name)


def changed(name, change):
    return lambda state: state.update({name: change(state[name])})


@pytest.mark.parametrize(
    ("edit", "words"),
    [
        (without("classifier.weight"), "classifier.weight is missing, not"),
        (without("graph.graph_t_values"), "graph.graph_t_values is missing"),
        (changed("classifier.weight", lambda t: t[:-1]), "classifier.weight is"),
        (changed("local.gru.new_x", lambda t: t[..., None]), "local.gru.new_x is"),
        (changed("classifier.bias", lambda t: {}), "classifier.bias is"),
        (changed("graph.graph_indices", lambda t: t[:-1]), "contradicts itself"),
        (changed("graph.graph_indices", lambda t: t + 19), "contradicts itself"),
        (changed("graph.graph_indptr", lambda t: t.flip(0)), "contradicts itself"),
        (changed("graph.graph_indptr", lambda t: t[None]), "is not made of lists"),
        (lambda state: state.update({"graph.word_vectors": torch.zeros(3)}), "does not fit its own settings"),
        (lambda state: state.update({"more": torch.zeros(3)}), "more is"),
    ],
)
def test_tensors_that_do_not_fit(edit, words, trained, refused, tmp_path):
    saved = checkpoint.find(trained)
    state = {name: tensor.clone() for name, tensor in saved.model.items()}
    edit(state)
    state = {name: torch.zeros(0) if isinstance(t, dict) else t for name, t in state.items()}
    path = tmp_path / "run/checkpoints" / LAST
    checkpoint.save(path, dataclasses.replace(saved, model=state))
    for command in (["eval", "--checkpoint", path, "-j", "0"], ["train", "--output-dir", tmp_path / "run", "--resume"]):
        refused(command, path, words)


def test_settings_that_lie(trained, refused, tmp_path):
    """A size that would take all memory is noticed before it is taken."""
    saved = checkpoint.find(trained)
    path = tmp_path / "x.safetensors"
    for hidden in (2**31 - 1, 9):
        saved.config.model.hidden = hidden
        checkpoint.save(path, saved)
        refused(["eval", "--checkpoint", path, "-j", "0"], path, "does not fit its own settings")


def test_moments_that_do_not_fit(trained, refused, tmp_path):
    saved = checkpoint.find(trained)
    path = tmp_path / "run/checkpoints" / LAST
    for change in ({"classifier.weight.exp_avg": torch.zeros(3)}, {"nothing.exp_avg": torch.zeros(3)}):
        checkpoint.save(path, dataclasses.replace(saved, optimizer=saved.optimizer | change))
        refused(["train", "--output-dir", tmp_path / "run", "--resume"], path, "does not fit the optimiser")


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
    optimizer = make_optimizer(whole, config)
    steps(whole, optimizer, 3)
    tensors = checkpoint.optimizer_tensors(optimizer, dict(whole.named_parameters()))
    kinds = {key.rpartition(".")[2] for key in tensors}
    assert kinds == ({"momentum_buffer"} if name == "sgd" else {"step", "exp_avg", "exp_avg_sq"})
    tensors = {key: value.clone() for key, value in tensors.items()}
    other = model()
    other.load_state_dict(whole.state_dict())
    steps(whole, optimizer, 2)
    restored = make_optimizer(other, config)
    checkpoint.restore_optimizer(restored, dict(other.named_parameters()), tensors, "x")
    steps(other, restored, 2)
    assert all(torch.equal(a, b) for a, b in zip(whole.parameters(), other.parameters(), strict=True))
