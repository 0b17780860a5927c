"""Scores on the disk: what is read is what was written, in bounded memory, and a full disk is one line."""

import errno
import os
import re
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch

from irnet import metrics
from irnet.data.sample import Batch
from irnet.engine import evaluate, score_file
from irnet.engine.score_file import ScoreFile
from irnet.errors import InputError
from irnet.models.predictions import CONV, PredictionKey, Predictions

CPU = torch.device("cpu")


class Drawn(torch.nn.Module):
    """Stands in for a model: as many predictions as I iterations of both modules give, drawn at random."""

    def __init__(self, classes: int, iterations: int):
        super().__init__()
        self.classes = classes
        modules = [PredictionKey(m, i) for m in ("local", "global") for i in range(1, iterations + 1)]
        self.predicted = [CONV, *modules]
        self.generator = torch.Generator().manual_seed(0)

    def forward(self, batch) -> Predictions:
        draw = lambda: torch.randn(len(batch.labels), self.classes, generator=self.generator)  # noqa: E731
        attention = torch.full((len(self.predicted), len(batch.labels)), 1 / len(self.predicted))
        return Predictions({key: draw() for key in self.predicted}, attention, draw(), None, [])


def batches(sizes, classes):
    for seed, size in enumerate(sizes):
        labels = torch.randint(0, classes, (size,), generator=torch.Generator().manual_seed(seed))
        yield Batch([torch.zeros(3, 8, 8)], torch.zeros(size, 4), torch.tensor([0, size]), labels, [f"{seed}.png"])


@pytest.mark.parametrize(("chunk", "block"), [(2**26, 2**22), (600, 2**22), (600, 100), (1, 1)])
def test_every_class_comes_back(monkeypatch, chunk, block):
    monkeypatch.setattr(score_file, "CHUNK", chunk)
    monkeypatch.setattr(score_file, "BLOCK", block)
    scores = torch.randn(50, 7, generator=torch.Generator().manual_seed(0))
    with ScoreFile(7) as file:
        for part in scores[:30].split([20, 0, 1, 9]):
            file.append(part)
        file.append(scores[30:].T.contiguous().T)  # in another layout
        for _ in range(2):
            read = dict(file.columns())
            assert list(read) == list(range(7))
            assert all(torch.equal(column, scores[:, c]) for c, column in read.items())
        assert torch.equal(torch.cat([rows.clone() for _, rows in file.rows()]), scores)


def test_no_region_at_all():
    with ScoreFile(3) as file:
        assert [len(column) for _, column in file.columns()] == [0, 0, 0]


@pytest.mark.parametrize("chunk", [2**26, 500])
def test_streamed_metrics_are_those_in_memory(monkeypatch, chunk):
    monkeypatch.setattr(score_file, "CHUNK", chunk)
    given = list(batches([40, 0, 7, 60], 11))
    found = evaluate.collect(Drawn(11, 2), given, CPU)
    model, parts = Drawn(11, 2), {}
    for batch in given:
        for key, logits in model(batch).with_final().items():
            parts.setdefault(key, []).append(logits.softmax(1))
    labels = torch.cat([batch.labels for batch in given])
    whole = {key: torch.cat(scores) for key, scores in parts.items()}
    assert found.metrics == {key: metrics.evaluate(scores, labels) for key, scores in whole.items()}  # every bit
    assert list(found.metrics) == list(whole) and len(whole) == 6


@pytest.fixture
def open_files(monkeypatch):
    """The ScoreFiles that are opened."""
    opened = []
    enter = ScoreFile.__enter__
    monkeypatch.setattr(ScoreFile, "__enter__", lambda self: opened.append(self) or enter(self))
    return opened


def test_nothing_is_left_behind(tmp_path, monkeypatch, open_files):
    monkeypatch.setattr(score_file.tempfile, "tempdir", str(tmp_path))
    evaluate.collect(Drawn(5, 1), batches([4, 4], 5), CPU)

    def failing():
        yield from batches([4], 5)
        assert len(open_files) == 8 and not open_files[-1]._file.closed
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        evaluate.collect(Drawn(5, 1), failing(), CPU)
    assert all(file._file.closed for file in open_files) and not list(tmp_path.iterdir())


def test_a_full_disk_is_one_line(tmp_path, monkeypatch, open_files):
    monkeypatch.setattr(score_file.tempfile, "tempdir", str(tmp_path))

    def full(data):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def stream():
        yield from batches([4], 5)
        monkeypatch.setattr(open_files[1], "_file", SimpleNamespace(write=full, close=open_files[1]._file.close))
        yield from batches([4], 5)

    words = f"{tmp_path}: the scores of the evaluation cannot be written (No space left on device); make room"
    with pytest.raises(InputError, match=re.escape(words)) as caught:
        evaluate.collect(Drawn(5, 1), stream(), CPU)
    assert "TMPDIR" in str(caught.value) and "\n" not in str(caught.value)


def test_a_real_full_disk_is_one_line():
    with pytest.raises(InputError, match="cannot be written"), ScoreFile(1000) as file:
        file._file.close()
        file._file = open("/dev/full", "wb+", buffering=0)  # noqa: SIM115
        file.append(torch.zeros(1000, 1000))


def test_no_folder_for_temporary_files(monkeypatch, tmp_path):
    monkeypatch.setattr(score_file.tempfile, "tempdir", str(tmp_path / "none"))
    with pytest.raises(InputError, match=f"{tmp_path / 'none'}: .* cannot be written"):
        ScoreFile(3)
    monkeypatch.setattr(score_file.tempfile, "tempdir", None)
    monkeypatch.setattr(score_file.tempfile, "_candidate_tempdir_list", lambda: [str(tmp_path / "none")])
    with pytest.raises(InputError, match=r"TMPDIR: .* cannot be written .No usable temporary directory"):
        ScoreFile(3)


PEAK = """
import resource, sys
import torch
from tests.engine.test_score_file import CPU, Drawn, batches, evaluate, score_file
torch.set_num_threads(1)
score_file.CHUNK = score_file.BLOCK = 2**20
evaluate.collect(Drawn(100, int(sys.argv[1])), batches([200] * 100, 100), CPU)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)
"""


def test_memory_does_not_grow_with_iterations():
    """The scores of the 4 predictions of one iteration are 32 MB, those of 5 iterations 96 MB."""

    def peak(iterations: int) -> float:
        done = subprocess.run([sys.executable, "-c", PEAK, str(iterations)], capture_output=True, text=True, check=True)
        return float(done.stdout)

    one, five = peak(1), peak(5)
    assert five < 1.08 * one, (one, five)  # MiB
