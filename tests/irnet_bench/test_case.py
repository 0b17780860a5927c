"""Cases: what a set-up draws, how cases are registered, and that the walk-through of CONTRIBUTING.md works."""

import re
from pathlib import Path

import pytest
import torch

from irnet.errors import InputError
from irnet_bench.case import Setup, case, cases
from irnet_bench.measure import examine

ROOT = Path(__file__).resolve().parents[2]


def test_the_walk_through_is_a_case_of_at_most_thirty_lines(tmp_path, cpu):
    text = (ROOT / "CONTRIBUTING.md").read_text()
    block = re.search(r"## Adding a benchmark case.*?```python\n(.*?)```", text, re.DOTALL)[1]
    assert len(block.splitlines()) <= 30
    path = tmp_path / "walk_through.py"
    path.write_text(block)
    (found,) = cases("kernels", "crop_square", [str(path)])
    work = found.build(Setup(found.shapes["gate"], torch.float32, cpu))
    results = examine(work, cpu)
    assert {name for name, _ in results} >= {"reference", "grid_sample"}
    assert {(r.status, r.reason) for r in results.values()} == {("ok", None)}


def test_every_case_of_irnet_is_short_and_says_what_it_is():
    for found in cases():
        source = found.build.__code__
        lines = {line for _, _, line in source.co_lines() if line}
        assert max(lines) - source.co_firstlineno < 30, found.name
        assert found.build.__doc__.strip().endswith("."), found.name
        assert set(found.shapes) == {"cpu", "cuda", "gate"}
        for key, shape in found.shapes.items():
            assert all(isinstance(number, int) for number in shape.values()), (found.name, key)


def test_a_set_up_draws_the_same_for_a_seed(cpu):
    def draw(seed):
        setup = Setup({"regions": 3}, torch.float32, cpu, seed)
        return setup.normal(2, 3), setup.boxes(setup.regions, 100, 200)

    assert all(a.equal(b) for a, b in zip(draw(1), draw(1), strict=True))
    assert not draw(1)[0].equal(draw(2)[0])


@pytest.mark.parametrize(("images", "regions"), [(1, 5), (4, 5), (5, 8), (2, 1), (3, 0)])
def test_ragged_batches_have_the_asked_for_average(cpu, images, regions):
    ptr = Setup({}, torch.float32, cpu).ragged(images, regions)
    assert ptr.dtype == torch.int64 and len(ptr) == images + 1 and ptr[0] == 0
    assert int(ptr[-1]) == images * regions and (ptr.diff() >= 0).all()
    if images > 1 and regions > 1:
        assert len(set(ptr.diff().tolist())) > 1, "ragged"


def test_boxes_lie_in_the_image_with_the_asked_for_sides(cpu):
    boxes = Setup({}, torch.float32, cpu).boxes(500, 200, 400)
    sides = boxes[:, 2:] - boxes[:, :2]
    assert boxes.dtype == torch.float32 and (boxes >= 0).all()
    assert (boxes[:, 2] <= 400.001).all() and (boxes[:, 3] <= 200.001).all()
    assert sides.min() > 39.9 and sides[:, 0].max() > 280 and sides[:, 1].max() <= 200.001


def test_maps_are_channels_last(cpu):
    assert Setup({}, torch.float32, cpu).normal(2, 3, 4, 5).is_contiguous(memory_format=torch.channels_last)


def test_a_shape_that_is_not_there_is_named(cpu):
    with pytest.raises(AttributeError, match="no 'colour' in its shape"):
        _ = Setup({"regions": 3}, torch.float32, cpu).colour


def test_no_suite_is_made_up():
    with pytest.raises(ValueError, match="no suite is called 'colours'"):
        case("colours", cpu={})


def test_cases_of_further_files_have_names_of_their_own(tmp_path):
    path = tmp_path / "more.py"
    path.write_text("from irnet_bench.case import case\nfrom irnet_bench.suites.kernels import crop_resize\n")
    assert [c.name for c in cases("kernels", "crop_resize", [str(path)])] == ["crop_resize"], "an import is no case"
    path = tmp_path / "same.py"
    path.write_text("from irnet_bench.case import case\n@case('kernels', cpu={})\ndef crop_resize(s):\n  'x'\n")
    with pytest.raises(InputError, match="another case called crop_resize"):
        cases(files=[str(path)])
