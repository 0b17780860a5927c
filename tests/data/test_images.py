"""Image files: every mode, depth and orientation, and every file that is refused."""

import numpy as np
import pytest
import torch
from PIL import Image

from irnet.data.images import read_image
from irnet.errors import InputError


@pytest.mark.parametrize("mode", ["L", "RGBA", "P", "CMYK", "1", "LA", "I;16"])
def test_read_image_gives_rgb_from_any_mode(tmp_path, mode):
    grey = np.tile(np.array([0, 255], dtype=np.uint8), (4, 3))  # black and white survive every mode
    if mode == "I;16":
        image = Image.fromarray(grey.astype(np.uint16) * 128)  # half grey: more than 255, far from white
        grey = grey // 2
    else:
        image = Image.fromarray(grey).convert("RGB").convert(mode)
    path = tmp_path / ("a.tif" if mode == "CMYK" else "a.png")
    image.save(path)
    pixels = read_image(path)
    assert pixels.dtype == torch.uint8
    assert pixels.shape == (3, 4, 6)
    assert torch.equal(pixels, torch.from_numpy(grey).expand(3, 4, 6))


def test_read_image_leaves_exif_orientation_alone(tmp_path):
    image = Image.new("RGB", (6, 4))
    exif = Image.Exif()
    exif[0x0112] = 6  # "rotate by 90 degrees to view"
    image.save(tmp_path / "a.jpg", exif=exif)
    assert read_image(tmp_path / "a.jpg").shape == (3, 4, 6)


@pytest.mark.parametrize("suffix", ["jpg", "png"])
def test_read_image_names_a_damaged_file(tmp_path, suffix):
    path = tmp_path / f"a.{suffix}"
    pixels = np.random.default_rng(0).integers(0, 256, (40, 40, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)
    whole = path.read_bytes()
    for size in (0, 1, 10, len(whole) // 2, len(whole) - 30):
        path.write_bytes(whole[:size])
        with pytest.raises(InputError, match=rf"a\.{suffix}: not a readable image .*fetch the file again"):
            read_image(path)
    with pytest.raises(InputError, match="no such image file; check the path"):
        read_image(tmp_path / "b.png")


def test_read_image_refuses_a_monstrous_size(tmp_path):
    Image.new("RGB", (4, 4)).save(tmp_path / "a.bmp")
    data = bytearray((tmp_path / "a.bmp").read_bytes())
    data[18:26] = (40_000).to_bytes(4, "little") * 2
    (tmp_path / "a.bmp").write_bytes(data)
    with pytest.raises(InputError, match=r"a\.bmp: is too large: it has more than the 178956970 pixels"):
        read_image(tmp_path / "a.bmp")


def test_read_image_raises_nothing_else_for_changed_bytes(tmp_path):
    rng = np.random.default_rng(1)
    refused = 0
    for suffix in ("jpg", "png", "ppm"):
        path = tmp_path / f"a.{suffix}"
        Image.fromarray(rng.integers(0, 256, (16, 16, 3), dtype=np.uint8)).save(path)
        whole = np.frombuffer(path.read_bytes(), dtype=np.uint8)
        for _ in range(150):
            damaged = whole.copy()
            damaged[rng.integers(0, min(len(whole), 400), 3)] = rng.integers(0, 256, 3)
            path.write_bytes(damaged.tobytes())
            try:
                read_image(path)
            except InputError:
                refused += 1
    assert refused > 50
