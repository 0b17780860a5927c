"""Scenes that hold the paths apart: what tells one kind of region is nothing that the paths of the others carry."""

from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from irnet.errors import InputError
from irnet.scenes.apart import AROUND, CLEAR, CLOSE, CROWD, far_distance
from irnet.scenes.generator import World, generate
from irnet.scenes.layout import DISTRACTORS, THEMES
from tests.scenes.tools import AMBIGUOUS, FIELD, OTHER, STRIDE, apart, distance, read, rebound, view

SIZE = 256
PARTNERS = ("hen", "turtle")


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> tuple[Path, dict, list[dict]]:
    root = tmp_path_factory.mktemp("scenes") / "set"
    facts = generate(root, train=60, val=2, seed=5, world=World(SIZE, apart=True), progress=False)
    return root, facts, read(root, "train")


def pairs(images: list[dict]) -> list[tuple[list, list]]:
    """The objects of both scenes of every pair of twins."""
    return [(a["objects"], b["objects"]) for a, b in zip(images[::2], images[1::2], strict=True)]


def centre(box: tuple) -> tuple[float, float]:
    return (box[0] + box[2]) / 2, (box[1] + box[3]) / 2


def test_a_convnet_is_right_on_one_twin_of_two(made):
    _, facts, images = made
    kinds = {"near": 0.5, "far": 0.5, "presence": 0.5, "plain": 1.0}
    assert facts["train"]["bounds"]["by_kind"] == kinds and rebound(images) == facts["train"]["bounds"]
    for first, second in pairs(images):
        for (name, kind, box), (twin_name, twin_kind, twin_box) in zip(first, second, strict=True):
            assert kind == twin_kind
            if kind in AMBIGUOUS:
                assert box == twin_box and twin_name == OTHER[name]


def test_whatever_decides_is_out_of_every_view(made):
    _, _, images = made
    decisive = {*PARTNERS, "sun", *THEMES[0], *THEMES[1]}
    for image in images:
        for _, kind, box in image["objects"]:
            if kind in AMBIGUOUS:
                seen = view(box, image["pixels"])
                assert all(apart(seen, other) for name, _, other in image["objects"] if name in decisive)


def test_near_is_told_by_the_row_alone(made):
    """Not by which partner is there, nor by its distance, nor by which side it is on, nor by how a partner looks."""
    _, _, images = made
    sides, phases = Counter(), set()
    for image in images:
        found = {name: box for name, kind, box in image["objects"] if name in PARTNERS}
        for name, kind, egg in image["objects"]:
            if kind != "near":
                continue
            assert set(found) == set(PARTNERS)
            assert distance(egg, found["hen"]) == distance(egg, found["turtle"])
            own, other = (found[n] for n in (PARTNERS if name == "hen_egg" else PARTNERS[::-1]))
            (dx, dy), (ox, oy) = ([c - e for c, e in zip(centre(b), centre(egg), strict=True)] for b in (own, other))
            assert abs(dy) == abs(ox) <= STRIDE // 2 < abs(dx) == abs(oy)
            assert abs(dx) - (own[2] - own[0] + egg[2] - egg[0]) / 2 >= 15 and dy and ox
            assert all(apart(view(p, image["pixels"]), egg) for p in (own, other))
            sides.update({("own", dx > 0, dy > 0), ("other", ox > 0, oy > 0)})
            phases.add(int(own[0] if dx > 0 else own[2]) % STRIDE)
    assert len(sides) == 8 and len(phases) > STRIDE // 2  # every side for either, and any place within a cell


def test_partners_are_within_three_cells(made):
    _, _, images = made
    for image in images:
        eggs = [box for _, kind, box in image["objects"] if kind == "near"]
        for egg in eggs:
            for name, _, box in image["objects"]:
                if name in PARTNERS:
                    gaps = [max(box[k] - egg[k + 2], egg[k] - box[k + 2], 0) for k in (0, 1)]
                    assert max(gaps) <= 3 * STRIDE


def test_far_is_told_by_the_side_alone(made):
    """The sun is beyond three 3x3 convolutions, and nothing else is close to the flower."""
    _, _, images = made
    for image in images:
        for name, kind, box in image["objects"]:
            if kind != "far":
                continue
            (sun,) = (b for n, _, b in image["objects"] if n == "sun")
            gap = centre(sun)[0] - centre(box)[0]
            assert name == ("morning_flower" if gap < 0 else "evening_flower")
            assert abs(gap) >= far_distance(SIZE) == 88
            first, last = int(box[0] // STRIDE), int(-(-box[2] // STRIDE))
            assert sun[2] // STRIDE < first - 3 or -(-sun[0] // STRIDE) > last + 3
            assert all(apart(box, other, CLEAR) for _, _, other in image["objects"] if other != box)


def test_no_box_sees_where_in_the_image_it_is(made):
    """Its cells see no padding, and the paper is the same everywhere."""
    _, _, images = made
    half = (FIELD - 1) // 2
    for image in images:
        empty = np.ones(image["pixels"].shape[:2], bool)
        for _, _, (x1, y1, x2, y2) in image["objects"]:
            assert min(x1, y1) // STRIDE * STRIDE - half >= 0
            assert -(-max(x2, y2) // STRIDE) * STRIDE + half < SIZE
            empty[int(y1) : int(y2), int(x1) : int(x2)] = False
        parts = [
            image["pixels"][part][empty[part]].mean()
            for part in (np.s_[: SIZE // 2], np.s_[SIZE // 2 :], np.s_[:, : SIZE // 2], np.s_[:, SIZE // 2 :])
        ]
        assert max(parts) - min(parts) < 0.2  # the grain's standard deviation is 2.2


def test_twins_hold_the_same_classes_but_for_themes(made):
    _, _, images = made
    for first, second in pairs(images):
        plain = [Counter(n for n, kind, _ in objects if kind == "plain") for objects in (first, second)]
        changed = [dict(a - b) for a, b in (plain, plain[::-1])]
        if any(kind == "presence" for _, kind, _ in first):
            assert sorted(any(n in THEMES[0] for n in c) for c in changed) == [False, True]
            assert [list(c.values()) for c in changed] == [[1], [1]]
        else:
            assert changed == [{}, {}]


def test_a_clue_of_presence_is_one_of_many_and_others_are_closer(made):
    _, _, images = made
    for image in images:
        names = [name for name, _, _ in image["objects"]]
        crowd = sum(name in DISTRACTORS for name in names)
        themes = [box for name, _, box in image["objects"] if name in (*THEMES[0], *THEMES[1])]
        balls = [box for _, kind, box in image["objects"] if kind == "presence"]
        assert CROWD[0] <= crowd - AROUND * len(balls) < CROWD[1] and len(themes) == len(balls)
        for ball in balls:
            assert apart(ball, themes[0], CLEAR)
            assert sum(not apart(ball, other, CLOSE + 1) for _, _, other in image["objects"]) - 1 >= AROUND


def test_the_set_is_known_again_and_no_other_is_taken_for_it(made, tmp_path):
    root, facts, _ = made
    world = World(SIZE, apart=True)
    assert facts["apart"] is True and generate(root, train=60, val=2, seed=5, world=world, progress=False) == facts
    with pytest.raises(InputError, match="other parameters"):
        generate(root, train=60, val=2, seed=5, world=World(SIZE), progress=False)
    mixed = generate(tmp_path / "mixed", train=2, val=2, world=World(SIZE), progress=False)
    assert "apart" not in mixed
    with pytest.raises(InputError, match="other parameters"):
        generate(tmp_path / "mixed", train=2, val=2, world=world, progress=False)


def test_odd_sizes(tmp_path):
    facts = generate(tmp_path / "set", train=6, val=2, world=World(257, apart=True), progress=False)
    assert set(facts["train"]["bounds"]["by_kind"].values()) <= {0.5, 1.0}
