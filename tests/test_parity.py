"""Parity with the authors' recorded outputs: the files pass, every altered entry fails, broken files get one line."""

from pathlib import Path

import numpy as np
import pytest
import torch

from irnet import parity
from irnet.config import LossConfig
from irnet.models import losses
from irnet.models.backbone import STRIDE
from irnet.models.predictions import CONV, PredictionKey
from irnet_kernels.roi.reference import coverage

ORACLE = Path(__file__).resolve().parents[2] / "shared" / "oracle"
FILES = sorted(ORACLE.glob("*.npz"))
needs_oracle = pytest.mark.skipif(not FILES, reason=f"no recorded outputs in {ORACLE}")

# name -> features, channels, classes, hidden, patch, initial map, map, regions, iterations, gate channels
SIZES = {
    "one-iteration": (5, 3, 4, 6, 7, (4, 4), (6, 9), 3, 1, 1),
    "five-iterations": (3, 2, 3, 4, 7, (20, 20), (5, 4), 4, 5, 1),
    "twelve-iterations": (2, 2, 3, 3, 3, (2, 2), (4, 5), 2, 12, 1),
    "one-region": (4, 3, 2, 5, 7, (3, 3), (4, 7), 1, 2, 1),
    "channel-gates": (4, 3, 5, 5, 7, (5, 5), (8, 6), 5, 2, 3),
    "one-channel": (2, 1, 3, 4, 7, (5, 5), (8, 6), 2, 2, 1),
    "patch-4-oblong-memory": (3, 2, 3, 4, 4, (3, 6), (9, 5), 3, 2, 1),
}


def variables(sizes) -> dict[str, np.ndarray]:
    features, d, classes, hidden, patch, initial, _, _, _, gate = sizes
    rng = np.random.default_rng(sum(sizes[0:5]))
    conv = {"input": d, "reset": gate, "update": gate}
    shapes = {
        "base/cls_score/weights": (features, classes),
        "base/cls_score/biases": (classes,),
        "SMN/mem_init/mem_init": (1, *initial, d),
        "SMN/bottom_top/pool5_comp/weights": (1, 1, features, d),
        "SMN/bottom_top/pool5_comp/biases": (d,),
        "SMN/bottom_top/map_prob/weights": (classes, d),
        "SMN/pool5_input/conv02/weights": (3, 3, d, d),
        "SMN/pool5_input/conv02/biases": (d,),
        **{f"SMN/mem_update/{kind}_{side}/weights": (3, 3, d, n) for kind, n in conv.items() for side in "pm"},
        **{f"SMN/mem_update/{kind}_p/biases": (n,) for kind, n in conv.items()},
        **{f"SMN/context/{name}/weights": (3, 3, d, d) for name in ("conv1", "conv02", "conv03")},
        **{f"SMN/context/{name}/biases": (d,) for name in ("conv1", "conv02", "conv03")},
        "SMN/fc7/mem_fc6/weights": (patch * patch * d, hidden),
        "SMN/fc7/mem_fc6/biases": (hidden,),
        "SMN/fc7/mem_fc7/weights": (hidden, hidden),
        "SMN/fc7/mem_fc7/biases": (hidden,),
        "SMN/cls_iter/cls_score_mem/weights": (hidden, classes),
        "SMN/cls_iter/cls_score_mem/biases": (classes,),
        "SMN/confid_iter/confid_mem/weights": (hidden, 1),
    }
    return {f"var/{name}": rng.uniform(-0.5, 0.8, shape).astype(np.float32) for name, shape in shapes.items()}


def record(sizes) -> dict[str, np.ndarray]:
    """A file as the authors' program would write it for other sizes, filled by irnet itself in float64."""
    features, _, classes, _, patch, _, (height, width), regions, iterations, _ = sizes
    rng = np.random.default_rng(regions + 10 * iterations)
    corner = rng.uniform(0, 0.5, (regions, 2)) * (width, height)
    extent = rng.uniform(1, 3, (regions, 2))
    boxes = np.concatenate([corner, corner + extent], 1) * STRIDE
    labels = rng.integers(0, classes, (regions, 1))
    file = variables(sizes)
    file["in/feature"] = rng.uniform(-1, 1, (1, height, width, features)).astype(np.float32)
    file["in/gt_boxes"] = np.concatenate([boxes, labels], 1).astype(np.float32)
    file["in/memory_size"] = np.array([height, width], np.int32)
    names = {f"out/cls_score_{i}": np.zeros(()) for i in range(iterations + 1)}
    model = parity.load_model(file | names, torch.float64)

    feature = torch.from_numpy(file["in/feature"]).double().permute(0, 3, 1, 2).requires_grad_()
    gt, ptr = torch.from_numpy(file["in/gt_boxes"]), torch.tensor([0, regions])
    found = model.reason(feature, gt[:, :4], ptr)
    loss = losses.compute(found, gt[:, 4].long(), ptr, LossConfig())
    loss.total.backward()
    outputs = {
        "loss": loss.total,
        "loss_image": loss.conv,
        "loss_memory": loss.modules["local"],
        "loss_final": loss.final,
        "attend_cls_score": found.final,
        "attend_cls_prob": found.final.softmax(1),
        "count_matrix": coverage(gt[:, :4] / STRIDE, ptr, patch, height, width)[..., None],
    }
    for i in range(iterations + 1):
        outputs[f"cls_score_{i}"] = found.logits[PredictionKey("local", i) if i else CONV]
        outputs[f"confid_{i}"] = found.confidences[i, :, None]
        outputs[f"attend_{i}"] = found.attention[i, :, None]
        outputs[f"memory_{i}"] = found.memories[i].permute(0, 2, 3, 1)
        if i:
            outputs[f"weights_{i}"] = loss.weights[PredictionKey("local", i)]
    file |= {f"out/{name}": value.detach().numpy() for name, value in outputs.items()}
    parameters = dict(model.named_parameters())
    for theirs, ours in parity.VARIABLES.items():
        gradient = parameters[ours].grad.numpy()
        if theirs.endswith("mem_init"):
            gradient = gradient.transpose(0, 2, 3, 1)
        elif gradient.ndim == 4:
            gradient = gradient.transpose(2, 3, 1, 0)
        elif gradient.ndim == 2:
            gradient = gradient.T
        file[f"grad/{theirs}"] = gradient
    file["grad/feature"] = feature.grad.permute(0, 2, 3, 1).numpy()
    return file


LAST_FIGURE = "instance_ap_ranked_by_ground_truth"
METRICS = {
    "scores": np.array([[0.0, 0.7, 0.3], [0.9, 0.1, 0.0], [0.0, 0.6, 0.4], [0.0, 0.2, 0.8]], np.float32),
    "labels": np.array([1, 1, 2, 2], np.int32),
    "expected_names": np.array(
        ["class_score", "class_accuracy", "class_ap", "instance_score", "instance_accuracy", LAST_FIGURE]
    ),
    # By hand. Class 1: hits 1, 1 (background never wins), ranked 0.7+ 0.6- 0.2- 0.1+: AP 1/2 + 1/2 * 2/4; class 2:
    # 0.8+ 0.4+ first. Ranked by the true class's score 0.8 hit, 0.7 hit, 0.4 miss, 0.1 hit: 1/4 + 1/4 + 1/4 * 3/4.
    "expected": np.array([0.5, 0.75, 0.875, 0.5, 0.75, 0.6875]),
}


def save(path: Path, file: dict[str, np.ndarray]) -> str:
    np.savez(path, **file)
    return str(path)


@needs_oracle
@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_the_authors_outputs(dtype, capsys):
    assert parity.main([*map(str, FILES), "--dtype", dtype]) == 0
    out = capsys.readouterr().out
    assert out.endswith("passed\n")
    for path in FILES:  # every recorded entry has its line
        with np.load(path) as file:
            entries = [n for n in file if n.startswith(("out/", "grad/"))] or file["expected_names"].tolist()
        lines = out.split(f"{path.name} ({dtype})\n")[1].splitlines()[1 : 1 + len(entries)]
        assert [line.split()[2] for line in lines] == entries


def test_bounds():
    assert {torch.float64: 2e-5, torch.float32: 1e-4} == parity.BOUNDS


@needs_oracle
@pytest.mark.parametrize("entry", ["out/loss", "out/memory_1", "out/attend_0", "out/count_matrix", "grad/feature"])
def test_an_altered_entry_fails(entry, tmp_path, capsys):
    with np.load(ORACLE / "local_b.npz") as archive:
        file = dict(archive)
    file[entry] = file[entry].copy()
    file[entry].flat[-1] += max(1e-3 * np.abs(file[entry]).max(), 1e-6)
    assert parity.main([save(tmp_path / "altered.npz", file)]) == 1
    out = capsys.readouterr().out
    assert [line.split()[2] for line in out.splitlines() if "TOO LARGE" in line] == [entry]
    assert out.endswith("failed: 1 beyond 2e-05\n")


@needs_oracle
def test_one_bad_file_among_good_ones_fails(tmp_path):
    bad = METRICS | {"expected": METRICS["expected"] + [0, 0, 0, 0, 0, 1e-3]}
    assert parity.main([str(FILES[-1]), save(tmp_path / "bad.npz", bad), str(FILES[-1])]) == 1


@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_metrics_of_another_file(dtype, tmp_path, capsys):
    path = save(tmp_path / "metrics.npz", METRICS)
    # float32 scores such as 0.7 are off by 1e-8, far below either bound
    assert parity.main([path, "--dtype", dtype]) == 0, capsys.readouterr().out


@pytest.mark.parametrize("figure", range(6))
def test_an_altered_figure_fails(figure, tmp_path):
    expected = METRICS["expected"].copy()
    expected[figure] += 1e-3
    assert parity.main([save(tmp_path / "metrics.npz", METRICS | {"expected": expected})]) == 1


@pytest.mark.parametrize("sizes", SIZES.values(), ids=SIZES)
def test_other_sizes(sizes, tmp_path, capsys):
    path = save(tmp_path / "local.npz", record(sizes))
    assert parity.main([path]) == 0, capsys.readouterr().out
    lines = capsys.readouterr().out.splitlines()[2:-1]
    errors = [float(line.split()[1]) for line in lines]
    assert len(lines) == 7 + 5 * sizes[8] + 4 + 31
    assert max(errors) < 1e-12


def test_sizes_are_read_off_the_shapes():
    features, d, classes, hidden, patch, initial, *_, gate = sizes = SIZES["patch-4-oblong-memory"]
    file = variables(sizes) | {f"out/cls_score_{i}": np.zeros(()) for i in range(4)}
    model = parity.load_model(file, torch.float64)
    assert (model.config.variant, model.config.iterations, model.config.patch_size) == ("local", 3, patch)
    assert model.local.initial.shape == (1, d, *initial)
    assert model.local.gru["reset_x"].shape == (gate, d, 3, 3)
    assert model.local.map_patch.weight.shape == (d, features, 1, 1)
    assert model.local.read1.weight.shape == (hidden, patch * patch * d)
    assert model.classifier.weight.shape == (classes, features)
    assert {p.dtype for p in model.parameters()} == {torch.float64}


def test_every_variable_is_used(tmp_path):
    file = record(SIZES["channel-gates"])
    names = [name for name in file if name.startswith("var/")]
    assert {name.removeprefix("var/") for name in names} == set(parity.VARIABLES)
    for name in names:
        altered = file | {name: file[name] + np.float32(0.05)}
        assert parity.main([save(tmp_path / "altered.npz", altered)]) == 1, name


def test_variables_map_one_to_one_onto_the_models_parameters():
    model = parity.load_model(record(SIZES["one-region"]), torch.float32)
    assert len(set(parity.VARIABLES.values())) == len(parity.VARIABLES)
    assert set(parity.VARIABLES.values()) == {name for name, _ in model.named_parameters()}


def test_an_infinity_in_both_is_no_error():
    a, inf = torch.tensor([1.0, torch.inf, -torch.inf]), torch.inf
    assert parity.errors(a, a.clone()) == (0, 0)
    assert parity.errors(a, torch.tensor([1.0, inf, inf]))[0] == inf
    assert not parity.errors(torch.tensor([torch.nan]), torch.tensor([1.0]))[1] <= 1
    assert not parity.errors(torch.tensor([1.0]), torch.tensor([torch.nan]))[1] <= 1
    assert parity.errors(torch.tensor([3.0, 1.0]), torch.tensor([4.0, 2.0])) == (1, 0.25)
    assert parity.errors(torch.tensor([1e-3]), torch.tensor([0.0]))[1] == pytest.approx(1e-3)


def without(*names):
    return lambda file: {name: value for name, value in file.items() if name not in names}


def replaced(name, change):
    return lambda file: file | {name: change(file[name])}


BROKEN_LOCAL = {
    "no-variable": (without("var/SMN/fc7/mem_fc7/biases"), "mem_fc7/biases"),
    "no-feature": (without("in/feature"), "in/feature"),
    "no-boxes": (without("in/gt_boxes"), "in/gt_boxes"),
    "no-memory-size": (without("in/memory_size"), "in/memory_size"),
    "no-loss": (without("out/loss"), "out/loss"),
    "no-gradient": (without("grad/SMN/context/conv1/weights"), "grad/SMN/context/conv1/weights"),
    "gap-in-iterations": (without("out/cls_score_1"), "out/cls_score_2"),
    "no-iterations": (without("out/cls_score_1", "out/cls_score_2"), "no iteration"),
    "unknown-variable": (lambda f: f | {"var/SMN/context/conv04/weights": np.zeros(3)}, "conv04"),
    "unknown-output": (lambda f: f | {"out/other": np.zeros(3)}, "out/other"),
    "shape-of-a-variable": (replaced("var/SMN/fc7/mem_fc7/weights", lambda v: v[:, 1:]), "local.read2.weight"),
    "rank-of-a-variable": (replaced("var/SMN/mem_init/mem_init", lambda v: v[0]), "local.initial"),
    "shape-of-an-output": (replaced("out/cls_score_1", lambda v: v[:, 1:]), "out/cls_score_1"),
    "shape-of-a-gradient": (replaced("grad/feature", lambda v: v[..., 1:]), "grad/feature"),
    "shape-of-the-feature": (replaced("in/feature", lambda v: v[..., 1:]), "in/feature"),
    "shape-of-the-boxes": (replaced("in/gt_boxes", lambda v: v[:, :4]), "in/gt_boxes"),
    "memory-size": (replaced("in/memory_size", lambda v: v + 1), "in/memory_size"),
    "label-out-of-range": (replaced("in/gt_boxes", lambda v: v + np.float32(99)), "labels"),
    "words": (replaced("in/feature", lambda v: np.full(v.shape, "x")), ""),
}
BROKEN_METRICS = {
    "no-scores": (without("scores"), "scores"),
    "no-expected": (without("expected"), "expected"),
    "no-names": (without("expected_names"), "var/"),
    "fewer-figures": (replaced("expected", lambda v: v[1:]), ""),
    "unknown-figure": (replaced("expected_names", lambda v: np.array([*v[:-1], "other"])), "other"),
    "missing-figure": (lambda f: f | {n: f[n][1:] for n in ("expected", "expected_names")}, "class_score"),
    "label-out-of-range": (replaced("labels", lambda v: v + 5), "labels"),
    "background-label": (replaced("labels", lambda v: v * 0), "labels"),
    "nan": (replaced("scores", lambda v: v * np.nan), "NaN"),
}


@pytest.mark.parametrize(
    ("make", "change", "word"),
    [
        *[pytest.param(lambda: record(SIZES["channel-gates"]), *c, id=f"local-{n}") for n, c in BROKEN_LOCAL.items()],
        *[pytest.param(lambda: METRICS, *c, id=f"metrics-{n}") for n, c in BROKEN_METRICS.items()],
    ],
)
def test_a_file_that_lacks_or_misfits_is_refused_in_one_line(make, change, word, tmp_path, capsys):
    path = save(tmp_path / "file.npz", change(make()))
    assert parity.main([path]) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"irnet.parity: {path}: ") and error.count("\n") == 1
    assert word in error


def broken_files(tmp_path: Path) -> dict[str, Path]:
    whole = Path(save(tmp_path / "whole.npz", METRICS)).read_bytes()
    compressed = tmp_path / "compressed.npz"
    np.savez_compressed(compressed, scores=np.random.default_rng(0).random(999))
    flipped = bytearray(compressed.read_bytes())
    flipped[60:260] = b"\xff" * 200  # no deflate block starts like this
    np.save(tmp_path / "array.npy", np.zeros(3))
    np.savez(tmp_path / "objects.npz", scores=np.array([{}], dtype=object))
    contents = {
        "empty": b"",
        "text": b"not an archive",
        "truncated": whole[: len(whole) // 2],
        "flipped": bytes(flipped),
    }
    for name, content in contents.items():
        (tmp_path / f"{name}.npz").write_bytes(content)
    names = [*(f"{name}.npz" for name in contents), "array.npy", "objects.npz", "missing.npz", "."]
    return {name: tmp_path / name for name in names}


def test_a_file_that_cannot_be_read_is_refused_in_one_line(tmp_path, capsys):
    for name, path in broken_files(tmp_path).items():
        assert parity.main([str(path)]) == 2, name
        error = capsys.readouterr().err
        assert error.startswith(f"irnet.parity: {path}: cannot be read (") and error.count("\n") == 1, name
