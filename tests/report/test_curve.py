"""The learning curve: its lines show what metrics.jsonl holds, and a run draws it."""

import io
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from irnet.cli import main
from irnet.report import curve, html


def lines(steps: int, every: int) -> list[dict]:
    """Losses that fall, and metrics that rise to the step's share of 80%."""
    found = []
    for step in range(1, steps + 1):
        found.append({"step": step, "lr": 0.1, "loss": 4 / step, "loss_conv": 1 / step, "loss_final": 2 / step})
        if step % every == 0:
            figures = dict.fromkeys(curve.METRICS, 0.8 * step / steps)
            found.append({"step": step, "metrics": {"final": figures, "conv": dict.fromkeys(curve.METRICS, 0.1)}})
    return found


@pytest.fixture
def drawn(monkeypatch):
    """The figures that are drawn."""
    figures = []
    real = html.charts
    monkeypatch.setattr(html, "charts", lambda rows: figures.append(real(rows)) or figures[-1])
    return figures


def test_lines_are_what_the_run_has_logged(drawn):
    picture = Image.open(io.BytesIO(curve.learning_curve(lines(10, 5))))
    assert picture.format == "PNG" and picture.size == (960, 780)
    _, (losses, metrics) = drawn[0]
    for line, factor in zip(losses.get_lines(), (4, 1, 2), strict=True):
        assert line.get_xdata().tolist() == list(range(1, 11))
        assert line.get_ydata() == pytest.approx([factor / step for step in range(1, 11)])
    texts = [text.get_text() for axes in (losses, metrics) for text in axes.get_legend().get_texts()]
    assert texts == ["loss", "conv", "final", "class AP", "class accuracy", "instance accuracy", "ConvNet alone"]
    final, conv, *_ = metrics.get_lines()
    assert final.get_ydata() == pytest.approx([40, 80]) and conv.get_ydata() == pytest.approx([10, 10])
    assert (final.get_linestyle(), conv.get_linestyle()) == ("-", "--")
    assert metrics.get_xlim() == losses.get_xlim() == (0, 10)


def test_many_points_are_means_of_neighbours(drawn):
    curve.learning_curve(lines(1001, 2000))
    _, (losses,) = drawn[0]  # no evaluation, no second chart
    assert len(losses.get_lines()[0].get_xdata()) == 167 <= curve.POINTS
    assert losses.get_lines()[0].get_xdata()[0] == np.mean(range(1, 7))
    assert losses.get_lines()[0].get_ydata()[0] == pytest.approx(np.mean([4 / step for step in range(1, 7)]))
    assert losses.get_lines()[0].get_xdata()[-1] == np.mean(range(997, 1002))


def test_a_run_without_steps(drawn):
    figures = dict.fromkeys(curve.METRICS, 0.5)
    curve.learning_curve([{"step": 0, "metrics": {"final": figures, "conv": figures}}])
    _, (metrics,) = drawn[0]
    assert metrics.get_xlim() == (0, 1) and all(tick % 1 == 0 for tick in metrics.get_xticks())


def test_what_is_missing_or_not_finite_is_left_out(drawn):
    odd = [
        {"step": 1, "loss": 3.0, "loss_conv": None, "loss_final": float("nan")},
        {"step": 2, "loss": float("inf"), "loss_local": 0.5},
        {"loss": 7.0},
        {"step": 3, "metrics": {"final": {"class_ap": 0.25, "class_accuracy": None}}},
        {"step": 4, "metrics": None},
    ]
    curve.learning_curve(odd)
    _, (losses, metrics) = drawn[0]
    assert {line.get_label(): line.get_xydata().tolist() for line in losses.get_lines()} == {
        "loss": [[1, 3]],
        "local": [[2, 0.5]],
    }
    assert metrics.get_lines()[0].get_xydata().tolist() == [[3, 25]] and metrics.get_xlim() == (0, 3)
    assert curve.description(odd) == (
        "Losses over training: loss ends at 3, local ends at 0.5. "
        "Metrics of held-out images: class AP of the final answer ends at 25 %."
    )
    assert curve.description([{"step": 1}, {"loss": 1.0}]) == ""


def test_means():
    points = [(float(i), 2.0 * i) for i in range(10)]
    assert curve.means(points, 10) == points and curve.means([], 5) == []
    assert curve.means(points, 4) == [(1.0, 2.0), (4.0, 8.0), (7.0, 14.0), (9.0, 18.0)]


def test_a_run_draws_its_curve(train_arguments, drawn, tmp_path):
    arguments = train_arguments(tmp_path / "run", "train.curve=true", "train.eval_every=2", steps=3)
    assert main(arguments) == 0
    with Image.open(tmp_path / "run/curve.png") as picture:
        assert picture.size == (960, 780)
    assert [len(axes[1].get_lines()[0].get_xdata()) for _, axes in drawn] == [1, 2]


def test_matplotlib_is_imported_only_to_draw():
    code = "import sys, irnet.report.curve; print('matplotlib' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
