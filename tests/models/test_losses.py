"""The loss against a plain loop over images, iterations and regions, in float64."""

import math

import pytest
import torch

from irnet.config import LossConfig
from irnet.models import losses
from irnet.models.losses import hard_weights
from irnet.models.predictions import CONV, PredictionKey, Predictions

CLASSES = 5
PTR = torch.tensor([0, 3, 3, 4, 9])  # four images, one with no regions
CONFIG = LossConfig(memory=0.7, final=1.3, beta=0.4)
NAMES = {
    "conv": ["conv"],
    "local": ["conv", "local 1", "local 2", "local 3"],
    "global": ["conv", "global 1", "global 2"],
    "full": ["conv", "local 1", "local 2", "global 1", "global 2"],
}


def predict(names, regions=9, dtype=torch.float64, seed=0) -> tuple[Predictions, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    draw = lambda *shape: (3 * torch.randn(*shape, dtype=torch.float64, generator=generator)).to(dtype)  # noqa: E731
    logits = {PredictionKey.parse(name): draw(regions, CLASSES).requires_grad_() for name in names}
    confidences = draw(len(names), regions).requires_grad_()
    final = draw(regions, CLASSES).requires_grad_()
    labels = torch.randint(0, CLASSES, (regions,), generator=generator)
    return Predictions(logits, confidences.softmax(0), final, confidences, []), labels


def part(predictions, rows) -> Predictions:
    return Predictions(
        {key: value[rows] for key, value in predictions.logits.items()},
        predictions.attention[:, rows],
        predictions.final[rows],
        predictions.confidences[:, rows],
        [],
    )


def entropy(row, label):
    return math.log(sum(math.exp(v) for v in row)) - row[label]


def slow_loss(predictions, labels, ptr, config):
    """Numbers, by the formula: (total, conv, {module: part}, final, {name: weights})."""
    logits = {str(key): value.tolist() for key, value in predictions.logits.items()}
    final, labels, images = predictions.final.tolist(), labels.tolist(), len(ptr) - 1
    conv_part = final_part = 0.0
    modules = {m: 0.0 for m in ("local", "global") if any(n.startswith(m) for n in logits)}
    weights = {name: [0.0] * len(labels) for name in logits if name != "conv"}
    for first, last in zip(ptr.tolist(), ptr.tolist()[1:], strict=False):
        rows = range(first, last)
        if not rows:
            continue
        conv_part += sum(entropy(logits["conv"][r], labels[r]) for r in rows) / len(rows) / images
        final_part += sum(entropy(final[r], labels[r]) for r in rows) / len(rows) / images
        for module in modules:
            iterations = sum(name.startswith(module) for name in logits)
            for i in range(1, iterations + 1):
                before = logits[f"{module} {i - 1}"] if i > 1 else logits["conv"]
                raw = [max(1 - math.exp(-entropy(before[r], labels[r])), config.beta) for r in rows]
                for r, value in zip(rows, raw, strict=True):
                    w = value / sum(raw)
                    weights[f"{module} {i}"][r] = w
                    modules[module] += w * entropy(logits[f"{module} {i}"][r], labels[r]) / iterations / images
    total = conv_part + config.memory * sum(modules.values()) + (config.final * final_part if modules else 0.0)
    return total, conv_part, modules, final_part, weights


@pytest.mark.parametrize("variant", NAMES)
def test_the_loss_is_the_loop(variant):
    predictions, labels = predict(NAMES[variant])
    found = losses.compute(predictions, labels, PTR, CONFIG)
    total, conv, modules, final, weights = slow_loss(predictions, labels, PTR, CONFIG)
    assert found.total.item() == pytest.approx(total, rel=1e-12)
    assert found.conv.item() == pytest.approx(conv, rel=1e-12)
    assert {m: v.item() for m, v in found.modules.items()} == pytest.approx(modules, rel=1e-12)
    assert found.final.item() == pytest.approx(final, rel=1e-12)
    assert {str(key) for key in found.weights} == set(weights)
    for name, expected in weights.items():
        assert found.weights[PredictionKey.parse(name)].tolist() == pytest.approx(expected, rel=1e-12)


def test_defaults_are_the_authors():
    assert LossConfig() == LossConfig(memory=1.0, final=1.0, beta=0.5)


@pytest.mark.parametrize("parts", [[1, 1, 1, 1], [2, 2]])
def test_accumulating_over_parts_is_the_batch(parts):
    predictions, labels = predict(NAMES["full"])
    leaves = [*predictions.logits.values(), predictions.final]
    whole = losses.compute(predictions, labels, PTR, CONFIG).total
    expected = torch.autograd.grad(whole, leaves)
    total, gradients, start = 0.0, [torch.zeros_like(leaf) for leaf in leaves], 0
    for images in parts:
        ptr = PTR[start : start + images + 1]
        rows = slice(int(ptr[0]), int(ptr[-1]))
        loss = losses.compute(part(predictions, rows), labels[rows], ptr - ptr[0], CONFIG).total / len(parts)
        total += loss.item()
        for sum_, gradient in zip(gradients, torch.autograd.grad(loss, leaves), strict=True):
            sum_ += gradient
        start += images
    assert total == pytest.approx(whole.item(), rel=1e-12)
    for found, gradient in zip(gradients, expected, strict=True):
        torch.testing.assert_close(found, gradient, rtol=1e-12, atol=1e-14)


def test_the_gradient_takes_the_weights_as_given():
    """Of an iteration's logits only their own entropy is differentiated, not the weights that follow from them."""
    predictions, labels = predict(NAMES["local"])
    loss = losses.compute(predictions, labels, PTR, CONFIG)
    loss.total.backward()
    one_hot = torch.nn.functional.one_hot(labels, CLASSES)
    for key, weight in loss.weights.items():
        assert not weight.requires_grad
        logits = predictions.logits[key]
        expected = CONFIG.memory / 3 / 4 * weight[:, None] * (logits.softmax(1) - one_hot)
        torch.testing.assert_close(logits.grad, expected, rtol=1e-12, atol=1e-14)


def test_weights_are_normalised_and_floored():
    predictions, labels = predict(NAMES["local"])
    image = torch.repeat_interleave(torch.arange(4), PTR.diff())
    weights = hard_weights(predictions.logits[CONV], labels, image, 4, 0.4)
    sums = torch.zeros(4, dtype=torch.float64).index_add_(0, image, weights)
    torch.testing.assert_close(sums, torch.tensor([1.0, 0.0, 1.0, 1.0], dtype=torch.float64))
    # one certainly right region beside one certainly wrong one: beta against 1
    sure = torch.tensor([[50.0, 0.0], [0.0, 50.0]])
    right_wrong = hard_weights(sure, torch.tensor([0, 0]), torch.tensor([0, 0]), 1, 0.25)
    torch.testing.assert_close(right_wrong, torch.tensor([0.2, 0.8]))


def test_an_image_weighs_the_same_however_many_regions_it_has():
    predictions, labels = predict(NAMES["full"])
    loss = lambda rows, ptr: losses.compute(part(predictions, rows), labels[rows], torch.tensor(ptr), CONFIG).total  # noqa: E731
    a, b = loss(slice(0, 3), [0, 3]), loss(slice(3, 4), [0, 1])
    torch.testing.assert_close(loss(slice(0, 4), [0, 3, 4]), (a + b) / 2)
    torch.testing.assert_close(loss(slice(0, 4), [0, 3, 3, 4, 4]), (a + b) / 4)


@pytest.mark.parametrize("variant", NAMES)
def test_no_regions_give_zero_and_a_gradient_of_zero(variant):
    predictions, labels = predict(NAMES[variant], regions=0)
    loss = losses.compute(predictions, labels, torch.zeros(3, dtype=torch.int64), CONFIG)
    assert loss.total.item() == 0
    loss.total.backward()
    assert predictions.logits[CONV].grad.shape == (0, CLASSES)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_low_precision_logits_are_summed_in_float32(dtype):
    """The loss of rounded logits is that of the same numbers in float64: only the logits themselves are rounded."""
    predictions, labels = predict(NAMES["full"], dtype=dtype)
    found = losses.compute(predictions, labels, PTR, CONFIG)
    assert found.total.dtype == torch.float32
    assert found.total.item() == pytest.approx(slow_loss(predictions, labels, PTR, CONFIG)[0], rel=1e-5)
