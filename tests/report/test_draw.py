"""The pictures of one image's reasoning: what they show, and that they take any image and boxes."""

import numpy as np
import pytest
import torch
from PIL import Image, ImageFont

from irnet.report.draw import (
    CLUE,
    LONGEST_SIDE,
    PANEL_WIDTH,
    QUESTION,
    Reasoning,
    _box_colour,
    _candidates,
    _overlap,
    _pixel_boxes,
    _place_labels,
    _square,
    annotate,
    attention_overlay,
    highlight,
    memory_overlay,
    module_mass,
    puzzle,
    trail,
)
from tests.report.made_up import CLASSES, made_up


@pytest.mark.parametrize("regions", [0, 1, 300])
def test_annotate_keeps_the_image_and_a_row_per_box(regions):
    result = annotate(made_up(regions))
    assert result.mode == "RGB" and result.width == 1024  # 128 x 8, the first whole factor that reaches 900
    picture = 96 * 8
    assert result.height > picture + 20 * max(regions, 1)
    assert (np.asarray(result)[picture:] < 100).any()  # something is written under the image


def test_annotate_gives_every_box_its_chip_in_the_panel():
    """Rows carry the box's colour, so the panel has as many colours of boxes as there are boxes."""
    panel = np.asarray(annotate(made_up(40)))[96 * 8 :].reshape(-1, 3)
    colours = set(np.unique(panel.astype(np.int64) @ (65536, 256, 1)).tolist())
    assert all(int(np.dot(_box_colour(r), (65536, 256, 1))) in colours for r in range(40))


@pytest.mark.parametrize("height,width", [(1, 1), (3, 500), (500, 3), (8, 8), (4000, 100), (3000, 4100)])
def test_annotate_gives_sensible_sizes_for_any_image(height, width):
    result = annotate(made_up(3, height, width))
    assert PANEL_WIDTH <= result.width <= LONGEST_SIDE
    assert result.height <= LONGEST_SIDE + 1200
    for picture in (highlight(made_up(3, height, width), 1), attention_overlay(made_up(3, height, width))):
        assert max(picture.size) <= LONGEST_SIDE + 400
    assert memory_overlay(made_up(3, height, width), 1).size[1] <= LONGEST_SIDE + 400


def test_annotate_takes_boxes_at_over_and_without_borders():
    boxes = np.array(
        [[0, 0, 128, 96], [0, 0, 1, 1], [127, 95, 128, 96], [-50, -50, 500, 500], [60, 40, 60, 40], [90, 80, 20, 10],
         [np.nan, 0, 10, 10], [300, 300, 400, 400]], np.float32
    )  # fmt: skip
    reasoning = made_up(len(boxes), boxes=boxes)
    for picture in (annotate(reasoning), attention_overlay(reasoning), memory_overlay(reasoning, 0)):
        assert picture.width >= 480
    drawn = np.array(_pixel_boxes(boxes, 8.0, (1024, 768)))
    assert (drawn >= 0).all() and (drawn[:, 2] < 1024).all() and (drawn[:, 3] < 768).all()
    assert (drawn[:, 2:] - drawn[:, :2] >= 4).all()  # none vanishes


def test_labels_stay_inside_and_apart_where_there_is_room():
    reasoning = made_up(12, 480, 640)
    boxes = _pixel_boxes(reasoning.boxes, 2.0, (1280, 960))
    placed = _place_labels(reasoning, boxes, (1280, 960), ImageFont.load_default(size=15))
    assert sorted(placed) == list(range(12))
    assert all(text.split()[0] == str(r + 1) and reasoning.answer(r)[0] in text for r, (text, _) in placed.items())
    rectangles = np.array([place for _, place in placed.values()], np.float64)
    assert (rectangles >= 0).all() and (rectangles[:, 2] < 1280).all() and (rectangles[:, 3] < 960).all()
    assert all(_overlap(rectangles[[i]], np.delete(rectangles, i, 0))[0] == 0 for i in range(12))
    assert _overlap(_candidates((0, 0, 9, 9), 50, 20, (100, 100)), np.array([[0, 0, 100, 100.0]])) == pytest.approx(1)


def test_same_box_many_times_falls_back_to_numbers():
    reasoning = made_up(30, boxes=np.tile(np.array([[40, 40, 60, 60]], np.float32), (30, 1)))
    boxes = _pixel_boxes(reasoning.boxes, 8.0, (1024, 768))
    texts = [text for text, _ in _place_labels(reasoning, boxes, (1024, 768), ImageFont.load_default(size=15)).values()]
    assert len(texts) == 30 and any(text.isdigit() for text in texts) and any(not text.isdigit() for text in texts)


def test_trail_follows_each_module_from_the_convnet():
    reasoning = made_up(2)
    answers = np.array([[0, 3], [0, 3], [1, 3], [2, 3], [2, 3]])  # conv, local 1, local 2, global 1, global 2
    reasoning.scores = np.eye(len(CLASSES), dtype=np.float32)[answers]
    assert trail(reasoning, 0) == "conv: mug -> local 2: cup; conv: mug -> global 1: bowl"
    assert trail(reasoning, 1) == ""


def test_attention_mass_and_its_picture():
    reasoning = made_up(3)
    mass = module_mass(reasoning)
    assert list(mass) == ["conv", "local", "global"]
    assert sum(mass.values()) == pytest.approx(np.ones(3), abs=1e-6)
    assert mass["local"] == pytest.approx(reasoning.attention[1:3].sum(0))
    before = np.asarray(attention_overlay(reasoning)).copy()
    reasoning.attention = reasoning.attention[::-1].copy()
    assert (np.asarray(attention_overlay(reasoning)) != before).any()


def test_memory_overlay_shows_the_memory_on_one_scale():
    reasoning = made_up(0)
    reasoning.image[:] = 128
    reasoning.memory = np.zeros((2, 6, 8), np.float32)
    reasoning.memory[0, 3, 4] = 0.5
    reasoning.memory[1, 3, 4] = 2.0
    first, second = (np.asarray(memory_overlay(reasoning, m), np.float64)[: 96 * 4].sum(axis=2) for m in (0, 1))
    y, x = np.unravel_index(second.argmax(), second.shape)
    assert (y, x) == pytest.approx((3 * 16 * 4, 4 * 16 * 4), abs=4)  # where the boxes' coordinates have the cell
    assert second.max() > first.max() + 100  # the first write is drawn on the scale of the second
    before = second.copy()
    reasoning.memory[1, 1, 1] = 1.0
    assert (np.asarray(memory_overlay(reasoning, 1), np.float64)[: 96 * 4].sum(axis=2) != before).any()


def test_memory_overlay_names_what_is_missing():
    with pytest.raises(ValueError, match="conv variant has no spatial memory"):
        memory_overlay(made_up(variant="conv"), 0)
    with pytest.raises(IndexError, match="write 2"):
        memory_overlay(made_up(), 2)
    silent = made_up()
    silent.memory[:] = 0
    assert memory_overlay(silent, 0).width >= 480


def test_highlight_marks_the_one_region():
    reasoning = made_up(4)
    pictures = [np.asarray(highlight(reasoning, r)) for r in range(4)]
    yellow = [(p == (255, 214, 0)).all(axis=2) for p in pictures]
    x1, y1, x2, y2 = _pixel_boxes(reasoning.boxes, 4.0, (512, 384))[2]
    rows, columns = np.nonzero(yellow[2])
    assert (columns.min(), rows.min(), columns.max(), rows.max()) == (x1, y1, x2, y2)
    assert (yellow[0] != yellow[1]).any()
    grey = (pictures[2] == (235, 235, 235)).all(axis=2)
    x1, y1, x2, _ = _pixel_boxes(reasoning.boxes, 4.0, (512, 384))[0]
    assert grey[y1, x1 : x2 + 1].mean() > 0.5  # the other boxes are there too, thin


@pytest.mark.parametrize("height,width", [(96, 128), (200, 90), (300, 300)])
def test_a_puzzle_frames_the_box_and_its_clue(height, width):
    """Each frame's outermost pixels lie where the box is, in the part of the image that is shown."""
    boxes = np.array([[20, 30, 36, 44], [70, 60, 86, 80], [2, 2, 12, 12]], np.float32)
    reasoning = made_up(3, height, width, boxes=boxes)
    left, top, right, bottom = _square(boxes[:2], reasoning.image.shape)
    assert 0 <= left <= 20 and 0 <= top <= 30 and 86 <= right <= width and 80 <= bottom <= height
    assert right - left == bottom - top or right - left == width or bottom - top == height
    picture = np.asarray(puzzle(reasoning, 0, [1]))
    scale = picture.shape[1] // (right - left)
    for colour, box in ((QUESTION, boxes[0]), (CLUE, boxes[1])):
        rows, columns = np.nonzero((picture == colour).all(axis=2))
        framed = np.array([columns.min(), rows.min(), columns.max(), rows.max()])
        assert framed.tolist() == ((box - [left, top, left, top]) * scale).tolist()
    x1, y1, x2, _ = ((boxes - [left, top, left, top]) * scale).astype(int)[1]
    dashes = (picture[y1, x1:x2] == CLUE).all(axis=1)
    assert dashes[0] and dashes[-1] and 0.4 < dashes.mean() < 0.8  # so that the two can be told apart without colours
    assert not (np.asarray(puzzle(reasoning, 0, [])) == CLUE).all(axis=2).any()


def test_reasoning_takes_tensors_and_refuses_wrong_shapes():
    r = made_up()
    tensors = {
        k: torch.from_numpy(getattr(r, k)) for k in ("boxes", "scores", "attention", "final", "memory", "labels")
    }
    same = Reasoning(image=r.image, classes=r.classes, keys=r.keys, kinds=r.kinds, variant=r.variant, **tensors)
    assert annotate(same).tobytes() == annotate(r).tobytes()
    for name in ("scores", "attention", "final", "labels"):
        with pytest.raises(ValueError, match=name):
            Reasoning(image=r.image, classes=r.classes, keys=r.keys, **{**tensors, name: tensors[name][..., :-1]})
    with pytest.raises(ValueError, match="image"):
        Reasoning(image=r.image.astype(np.float32), classes=r.classes, keys=r.keys, **tensors)


def test_names_the_font_cannot_show_are_still_drawn():
    names = ["café, coffee shop\nnewline", "瓶", "a" * 200, "<b>", ""]
    assert annotate(made_up(6, classes=names)).width == 1024


def test_pictures_can_be_saved(tmp_path):
    annotate(made_up(2)).save(tmp_path / "a.png")
    with Image.open(tmp_path / "a.png") as image:
        assert image.size[0] == 1024
