"""The README's Python runs as it stands, and its plain-PyTorch crop is the operator's."""

import re
from pathlib import Path

import torch

from irnet_kernels import crop_resize

README = Path(__file__).parents[1] / "README.md"


def test_python_blocks_run_and_say_the_shapes():
    operators, plain, model = re.findall(r"```python\n(.*?)```", README.read_text(), re.DOTALL)
    names = {}
    exec(operators, names)
    assert names["patches"].shape == (3, 512, 7, 7)
    assert names["memory"].shape == (2, 512, 38, 63)
    assert names["messages"].shape == (3, 512)
    exec(plain, names)
    ours = crop_resize(names["memory"], names["boxes"], names["ptr"])[0]
    # Both interpolate with weights that carry a few roundings of positions up to 62.
    budget = 8 * 62 * torch.finfo(torch.float32).eps * names["memory"].abs().max()
    assert (names["patch"][0] - ours).abs().max() < budget
    exec(model, names)
    assert names["predictions"].final.shape == (3, 80)
    assert names["predictions"].attention.shape == (4, 3)


def test_make_targets_named_exist():
    makefile = (README.parent / "Makefile").read_text()
    for target in set(re.findall(r"(?:^    |`)make ([a-z-]+)", README.read_text(), re.MULTILINE)):
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), target
