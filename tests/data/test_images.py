"""Image files: every mode, depth and orientation, and every file that is refused."""

import struct
import zlib

import numpy as np
import pytest
import torch
from PIL import Image

from irnet.data.images import read_header, read_image
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


def photo(path, orientation, width=40, height=20, save=None):
    """A black image stored as width x height, its left half white, that carries an EXIF orientation."""
    pixels = np.zeros((height, width, 3), dtype=np.uint8)
    pixels[:, : width // 2] = 255
    if path.suffix == ".tif":
        Image.fromarray(pixels).save(path, tiffinfo={274: orientation}, **(save or {}))
    else:
        exif = Image.Exif()
        exif[0x0112] = orientation
        Image.fromarray(pixels).save(path, exif=exif, lossless=True, **(save or {}))
    return path


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("suffix", ["tif", "png", "jpg", "webp", "lzw.tif"])
def test_every_format_gives_its_stored_pixels_unless_turned_on_purpose(tmp_path, suffix, orientation):
    """Pillow turns a TIFF on loading, and no other format."""
    save = {"compression": "tiff_lzw"} if suffix == "lzw.tif" else {}
    path = photo(tmp_path / f"a.{suffix}", orientation, save=save)
    for rules in ({}, {"orientation": "stored"}, {"annotated": (40, 20)}):
        image = read_image(path, **rules)
        assert image.shape == (3, 20, 40)
        assert image[:, :, :18].float().mean() > 254 and image[:, :, 22:].float().mean() < 1
    header = read_header(path)
    assert (header.width, header.height, header.orientation) == (40, 20, orientation)
    assert header.is_ambiguous((40, 20)) == (orientation in (2, 3, 4)) and not header.is_ambiguous((20, 40))
    shown = read_image(path, orientation="turned")
    white = {1: "left", 2: "right", 3: "right", 4: "left", 5: "top", 6: "top", 7: "bottom", 8: "bottom"}[orientation]
    halves = {"left": shown[:, :, :9], "right": shown[:, :, -9:], "top": shown[:, :9], "bottom": shown[:, -9:]}
    assert shown.shape == ((3, 40, 20) if orientation >= 5 else (3, 20, 40))
    assert halves[white].float().mean() > 254
    if orientation >= 5:  # only the turned image has the annotated size
        assert torch.equal(read_image(path, annotated=(20, 40)), shown)


@pytest.mark.parametrize(
    ("values", "suffix", "levels"),
    [
        (np.linspace(0, 65535, 64).astype(np.uint16), "tif", 64),
        (np.linspace(0, 65535, 64).astype(np.uint16), "png", 64),
        (np.linspace(0, 65535, 64).astype(np.int32), "ppm", 64),
        (np.linspace(0, 255, 64).astype(np.uint8), "tif", 64),
        (np.zeros(64, np.uint8), "png", 1),
    ],
)
def test_a_ramp_from_black_to_white_stays_one(tmp_path, values, suffix, levels):
    Image.fromarray(np.tile(values, (48, 1))).save(tmp_path / f"a.{suffix}")
    pixels = read_image(tmp_path / f"a.{suffix}")
    assert pixels.max() == (255 if levels > 1 else 0) and pixels.min() == 0 and len(pixels.unique()) == levels


@pytest.mark.parametrize(
    ("values", "words"),
    [
        (np.linspace(0, 1, 64).astype(np.float32), "(mode F)"),
        (np.linspace(0, 255, 64).astype(np.float32), "(mode F)"),
        (np.linspace(0, 255, 64).astype(np.int32), "(mode I)"),
        (np.linspace(0, 65535, 64).astype(np.int32), "(mode I)"),
        (np.linspace(0, 4095, 64).astype(np.uint16), "(mode I;16)"),
        (np.linspace(0, 1023, 64).astype(np.uint16), "(mode I;16)"),
        (np.linspace(0, 16383, 64).astype(np.uint16), "(mode I;16)"),
        (np.linspace(0, 255, 64).astype(np.uint16), "(mode I;16)"),
    ],
)
@pytest.mark.parametrize("orientation", [1, 6])
def test_a_range_that_cannot_be_known_is_refused_and_names_the_mode(tmp_path, values, words, orientation):
    image = Image.fromarray(np.tile(values, (48, 1)))
    image.save(tmp_path / "a.tif", tiffinfo={274: orientation})
    with pytest.raises(InputError) as caught:
        read_image(tmp_path / "a.tif")
    assert words in caught.value.trouble and "white cannot be known" in caught.value.trouble
    assert caught.value.cure == "convert it to 8 bits a channel, so that white is 255"


def deep_png(path, values):
    """A 16-bit RGB PNG, which Pillow reads and does not write."""
    height, width, _ = values.shape
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
    chunks = [(b"IHDR", struct.pack(">IIBBBBB", width, height, 16, 2, 0, 0, 0)), (b"IDAT", zlib.compress(rows))]
    data = b"\x89PNG\r\n\x1a\n"
    for name, body in [*chunks, (b"IEND", b"")]:
        data += struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))
    path.write_bytes(data)
    return path


def test_colours_of_16_bits(tmp_path):
    ramp = np.tile(np.linspace(0, 1, 64)[None, :, None], (4, 1, 3))
    assert read_image(deep_png(tmp_path / "a.png", ramp * 65535)).max() == 255
    with pytest.raises(InputError, match="holds 16 bits a channel"):
        read_image(deep_png(tmp_path / "b.png", ramp * 4095))


def test_an_image_over_the_limit_can_be_allowed(tmp_path):
    Image.new("L", (300, 200)).save(tmp_path / "a.png")
    limit = Image.MAX_IMAGE_PIXELS
    for pixels in (10, 59_999):  # far over the limit, and by one
        with pytest.raises(InputError, match=f"more than the {pixels} pixels that are allowed; .*data.max_pixels"):
            read_image(tmp_path / "a.png", max_pixels=pixels)
    assert read_image(tmp_path / "a.png", max_pixels=60_000).shape == (3, 200, 300)
    assert limit == Image.MAX_IMAGE_PIXELS
