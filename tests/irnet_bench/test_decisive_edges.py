"""The measurement of decisive edges: what is drawn at random, how answers are counted, and the committed result."""

import importlib
import json
import sys
from pathlib import Path

import pytest
import torch

from irnet.engine.explain import EdgeStudy
from tests.models.test_irnet import build, make_batch

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "benchmarks"))
decisive_edges = importlib.import_module("decisive_edges")


def study() -> EdgeStudy:
    batch = make_batch([(64, 80)], [4])
    return EdgeStudy(build("full"), batch.images[0], batch.boxes)


def test_random_edges_are_of_the_kind_and_end_of_the_strongest_and_none_comes_twice():
    found = study()
    rows = [found.edges.row(index) for index in range(len(found.edges.type))]
    what = [row.kind if row.kind == "class" else row.target == 2 for row in rows]
    strongest = torch.tensor([what.index("class"), what.index(True), what.index(False), what.index("class") + 1])
    pools = decisive_edges.alike(found, 2, strongest)
    for edge, pool in zip(strongest.tolist(), pools, strict=True):
        assert pool.tolist() == [index for index in range(len(rows)) if what[index] == what[edge]]
    generator, drawn = torch.Generator().manual_seed(0), set()
    for _ in range(200):
        edges = decisive_edges.draw(pools, generator).tolist()
        assert len(set(edges)) == 4 and [what[edge] for edge in edges] == ["class", True, False, "class"]
        drawn |= set(edges)
    assert drawn == set(range(len(rows)))  # every edge has its turn
    assert decisive_edges.draw([torch.tensor([5]), torch.tensor([5])], generator).tolist() == [5]


def test_an_edge_comes_from_the_clue_or_from_its_class():
    found = study()
    rows = [found.edges.row(index) for index in range(len(found.edges.type))]
    for index, row in enumerate(rows):
        from_region, from_class = row.kind == "region" and row.source == 3, row.kind == "class" and row.source == 1
        one = torch.tensor([index])
        assert decisive_edges.from_clue(found, one, clues=[3], labels=[1]) == (from_region or from_class)
    assert not decisive_edges.from_clue(found, torch.tensor([], dtype=torch.int64), [3], [1])


def row(strongest: bool, random: int, corrected: bool = True) -> dict:
    """A region whose answer the strongest edges change or not, and of five random choices so many."""
    choices = [i < random for i in range(5)]
    found = {"kind": "near", "corrected": corrected, "edges": 10, "reached_by": 8, "of_classes": [True, False]}
    return found | {"strongest": strongest, "single": False, "alike": choices, "removed": 2}


@pytest.mark.parametrize(("random", "met"), [(0, True), (1, True), (2, False)])
def test_the_target_is_five_times_as_often(random, met, monkeypatch):
    monkeypatch.setattr(decisive_edges, "POOLS", ("alike",))
    # The strongest change two of four answers; of 20 random choices may change two.
    rows = [row(True, random), row(True, random), row(False, 0), row(False, 0)]
    found = decisive_edges.rates(rows)
    assert found["changed_by_three_strongest"] == 0.5 and found["changed_by_three_random"] == {"alike": random / 10}
    assert found["met"] == met and found["ratio"] == {"alike": 5 / random if random else None}
    assert not decisive_edges.rates([row(False, 0)])["met"]


def test_the_committed_result_meets_the_target():
    record = json.loads(decisive_edges.RESULT.read_text())
    assert record["command"].startswith("python benchmarks/decisive_edges.py")
    assert set(record["variants"]) == {"global", "full"}
    for variant in record["variants"].values():
        for group in ("corrected", "all"):
            found = variant["regions"][group]
            random = found["changed_by_three_random"]
            assert found["met"] and all(found["changed_by_three_strongest"] >= 5 * value for value in random.values())
