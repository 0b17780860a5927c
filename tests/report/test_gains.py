"""What reasoning gained and lost: counts against plain loops, errors against cases with a known answer."""

import math

import numpy as np
import pytest

from irnet.models.predictions import CONV, FINAL, PredictionKey
from irnet.report import gains
from tests.report.made_up_run import answers_of, made_up_images, of_answers


def test_the_error_of_a_mean_is_the_textbook_one_where_every_image_has_one_region():
    values = np.random.default_rng(0).random(50)
    mean, error = gains.mean_and_error(values, np.arange(50))
    assert mean == pytest.approx(values.mean())
    assert error == pytest.approx(values.std(ddof=1) / math.sqrt(50))


def test_regions_that_repeat_others_of_their_image_add_no_certainty():
    values, images = np.random.default_rng(1).random(40), np.arange(40)
    once = gains.mean_and_error(values, images)
    assert gains.mean_and_error(np.repeat(values, 5), np.repeat(images, 5)) == pytest.approx(once)
    assert gains.mean_and_error(np.repeat(values, 5), np.arange(200))[1] < once[1] / 2


def test_the_error_of_a_mean_over_classes_is_that_of_drawing_images_again():
    """The bootstrap is the oracle; with 4,000 draws its own error is about one per cent."""
    rng = np.random.default_rng(2)
    image = np.repeat(np.arange(300), 4)
    groups = rng.choice(3, 1200, p=[0.6, 0.3, 0.1])
    values = (rng.random(1200) < 0.3 + 0.2 * groups + 0.2 * np.repeat(rng.random(300) < 0.5, 4)).astype(float)
    mean, error = gains.mean_and_error(values, image, groups)
    assert mean == pytest.approx(np.mean([values[groups == g].mean() for g in range(3)]))
    totals, counts = (
        np.stack([np.bincount(image[groups == g], w[groups == g], 300) for g in range(3)])
        for w in (values, np.ones(1200))
    )
    draws = rng.multinomial(300, [1 / 300] * 300, 4000)  # how often each image is drawn
    means = ((draws @ totals.T) / (draws @ counts.T)).mean(1)
    assert error == pytest.approx(means.std(ddof=1), rel=0.05)


def test_one_image_has_no_error():
    mean, error = gains.mean_and_error(np.array([1.0, 0.0]), np.array([0, 0]))
    assert mean == 0.5 and math.isnan(error)
    run = of_answers([0, 1], [0, 0], [0, 1], [0, 0])
    assert all(half == "" for row in gains.metric_rows(run) for _, half in row.cells)
    assert gains.headline(run)["chance"]


def test_counts_by_class_and_by_pair_are_those_of_a_loop():
    run = answers_of(list(made_up_images(40)))
    label, before, after = run.labels.tolist(), run.best[CONV].tolist(), run.best[FINAL].tolist()
    rows = list(zip(label, before, after, strict=True))
    for c, row in enumerate(gains.class_rows(run)):
        own = [(b == t, a == t) for t, b, a in rows if t == c]
        gained, lost = own.count((False, True)), own.count((True, False))
        assert row == [len(own), sum(b for b, _ in own), gained, lost]
    found = gains.pairs(run)
    size = len(run.classes)
    expected = {"resolved": [], "made": []}
    for t in range(size):
        for wrong in set(range(size)) - {t}:
            first, last = ([pair for pair in rows if pair[0] == t and pair[at] == wrong] for at in (1, 2))
            resolved, made = sum(z == t for _, _, z in first), sum(y == t for _, y, _ in last)
            expected["resolved"] += [[t, wrong, resolved, len(first)]] * (resolved > 0)
            expected["made"] += [[t, wrong, made, len(last)]] * (made > 0)
    assert found["resolved"] and found["made"]
    for name, pairs in found.items():
        assert sorted(pairs) == sorted(expected[name])
        counts = [changed for _, _, changed, _ in pairs]
        assert counts == sorted(counts, reverse=True)


def test_the_lists_of_pairs_are_cut():
    classes = 60  # 59 x 60 pairs, each once before and never after
    pairs = [(t, a) for t in range(classes) for a in range(classes) if t != a]
    label, conv = ([pair[i] for pair in pairs] for i in (0, 1))
    found = gains.pairs(of_answers(label, conv, label, list(range(len(label))), classes))
    assert len(found["resolved"]) == gains.PAIRS and found["made"] == []


def test_rows_say_every_prediction_and_the_gain():
    run = answers_of(list(made_up_images(30)))
    rows = gains.metric_rows(run)
    names = ["conv", "local 1", "local 2", "global 1", "global 2", "final", "gain"]
    assert [row.key for row in rows] == names
    before, after, gain = (float(rows[i].cells[0][0]) for i in (0, 5, 6))
    assert gain == pytest.approx(after - before, abs=0.11) and gain > 10
    assert all(float(half) > 0 for row in rows for _, half in row.cells[:2])
    assert [row.cells[2][1] for row in rows] == [""] * 7  # nothing says how sure an AP is
    words = gains.headline(run)
    assert words["gained"] > words["lost"] and not words["chance"]
    assert (words["regions"], words["images"]) == (29 * 4, 30)


def test_the_convnet_alone_gains_nothing():
    run = answers_of(list(made_up_images(10, variant="conv")))
    assert [row.key for row in gains.metric_rows(run)] == ["conv", "final"]
    words = gains.headline(run)
    assert (words["gained"], words["lost"]) == (0, 0) and words["chance"]


def test_seeds_give_mean_and_sample_deviation():
    run = of_answers([0, 1], [0, 0], [0, 1], [0, 1])
    assert gains.seed_rows(run) == []
    run.seeds = [{"final": {"instance_accuracy": a}, "conv": {"class_ap": float("nan")}} for a in (0.6, 0.7)]
    conv, final = gains.seed_rows(run)
    assert final.cells == [("60.0", "10.0"), ("50.0", ""), ("50.0", "")]
    assert conv.cells[2] == ("50.0", "")


@pytest.mark.parametrize(("degrees", "expected"), [(9, 2.26216), (19, 2.09302), (99, 1.98422), (10**6, 1.95996)])
def test_the_quantile_is_that_of_the_tables(degrees, expected):
    assert gains.t_quantile(degrees) == pytest.approx(expected, rel=2e-3)


def test_few_images_have_no_interval_and_no_clear_difference():
    for images, told in ((9, False), (10, True)):
        labels = [0] * images
        run = of_answers(labels, [1] * (images - 1) + [0], labels, list(range(images)))
        run.best[PredictionKey("local", 1)] = run.best[FINAL]
        run.metrics["local 1"] = run.metrics["final"]
        assert gains.headline(run)["chance"] == (not told)
        assert [bool(row.cells[0][1]) for row in gains.metric_rows(run)] == [told] * 4
    mean, error = gains.mean_and_error(run.right(CONV), run.image)
    assert gains.mean_and_half(run.right(CONV), run.image) == (mean, pytest.approx(2.262 * error, rel=2e-3))


def test_images_without_boxes_count_as_images():
    run = of_answers([0, 1], [0, 0], [0, 1], [0, 1])
    run.images = 6
    assert gains.headline(run)["images"] == 6
