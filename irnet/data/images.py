"""Image files: decoding to RGB, the size and orientation in a header, and every file that is refused in words."""

import contextlib
import os
import struct
import warnings
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from PIL import ExifTags, Image
from torch import Tensor

from ..errors import InputError

MAX_PIXELS = 178_956_970  # the size at which Pillow itself suspects an attack
ORIENTATIONS = ("auto", "stored", "turned")

# What Pillow raises for damaged files.
_PILLOW_ERRORS = (OSError, SyntaxError, ValueError, TypeError, KeyError, IndexError, EOFError, struct.error)
_FETCH = "fetch the file again or leave it out"
_EIGHT_BITS = "convert it to 8 bits a channel, so that white is 255"
# How an image with each EXIF orientation is turned for viewing, and how that is undone.
_TURN = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_UNDO = _TURN | {6: Image.Transpose.ROTATE_90, 8: Image.Transpose.ROTATE_270}


@dataclass
class Header:
    """What tells how an image is to be read.

    width, height  in pixels as stored
    orientation    of EXIF (1: upright, 2 to 8: how viewers turn the image)
    deep           more than 8 bits a channel: only the pixels tell whether its white can be known
    """

    width: int
    height: int
    orientation: int
    deep: bool

    def size(self, as_shown: bool) -> tuple[int, int]:
        """(width, height) as stored, or as viewers show the image."""
        swapped = as_shown and self.orientation >= 5
        return (self.height, self.width) if swapped else (self.width, self.height)

    def is_turned(self, orientation: str, annotated: tuple[int, int] | None = None) -> bool:
        """Whether `read_image` turns the image, under a rule of ORIENTATIONS and for an annotated (width, height)."""
        if orientation == "auto":
            return annotated is not None and self.size(True) == annotated != self.size(False)
        return orientation == "turned" and self.orientation != 1

    def is_ambiguous(self, annotated: tuple[int, int]) -> bool:
        """Whether the annotated (width, height) fits the image both as stored and as viewers turn it."""
        return self.orientation != 1 and self.size(True) == annotated == self.size(False)


def ambiguity(count: int, images: int) -> str:
    """The warning about images whose orientation their size does not settle."""
    return (
        f"{count} of {images} images looked at carry an EXIF orientation and have the annotated size turned and not "
        "turned; they are read as stored; set data.orientation=turned if they were annotated as viewers show them"
    )


def read_header(path: str | os.PathLike, max_pixels: int = MAX_PIXELS) -> Header:
    """What the file's header says, without decoding the image. InputError where it is no image."""
    with _opened(path, max_pixels) as image:
        return _header(image)


def read_image(
    path: str | os.PathLike,
    *,
    annotated: tuple[int, int] | None = None,
    orientation: str = "auto",
    max_pixels: int = MAX_PIXELS,
) -> Tensor:
    """The image in `path` as uint8 [3, H, W], RGB whatever its mode.

    annotated    the (width, height) that the annotations were made for, where known
    orientation  "stored": the pixels as they lie in the file, whatever its EXIF orientation and format. "turned": as
                 viewers show them. "auto": as stored, unless only the turned image has the annotated size
    max_pixels   of width x height

    InputError where the file cannot be decoded or is larger, or holds more than 8 bits a channel in a range that cannot
    be known: float and 32-bit images, and 16-bit images whose values use 14 bits or fewer.
    """
    with _opened(path, max_pixels) as image:
        header = _header(image)
        mode, scaled = image.mode, image.format in ("PNG", "PPM")
        image.load()
        if header.orientation != 1 and _orientation(image) != header.orientation:  # Pillow turns a TIFF on loading
            image = image.transpose(_UNDO[header.orientation])
        if header.is_turned(orientation, annotated):
            image = image.transpose(_TURN[header.orientation])
        pixels = _as_rgb(image, scaled, path)
    if header.deep and pixels.max() < 64:
        trouble = f"holds 16 bits a channel (mode {mode}) and uses 14 or fewer of them, so its white cannot be known"
        raise InputError(path, trouble, _EIGHT_BITS)
    return torch.from_numpy(pixels).permute(2, 0, 1).contiguous()


def as_tensor(image: Tensor | Image.Image, where: str) -> Tensor:
    """An image in memory as uint8 [3, H, W]: of a PIL image the pixels as they are, whatever its EXIF orientation.

    A tensor is uint8 [3, H, W], or floating with white at 1, as torchvision's transforms give it. InputError, naming
    `where`, for anything else.
    """
    if isinstance(image, Image.Image):
        return torch.from_numpy(_as_rgb(image, scaled=False, path=where)).permute(2, 0, 1).contiguous()
    if not isinstance(image, Tensor) or image.dim() != 3 or image.shape[0] != 3 or not all(image.shape[1:]):
        what = f"a tensor {list(image.shape)}" if isinstance(image, Tensor) else f"a {type(image).__name__}"
        raise InputError(where, f"is {what}", "give a tensor [3, H, W], a PIL image or a path")
    if image.dtype == torch.uint8:
        return image.cpu()
    if not image.is_floating_point() or not (image.isfinite() & (image >= 0) & (image <= 1)).all():
        cure = "give uint8 from 0 to 255, or floating numbers from 0 to 1 before they are normalised"
        raise InputError(where, f"is {image.dtype} with values from {image.min():g} to {image.max():g}", cure)
    return (image.detach().float().cpu() * 255).round().to(torch.uint8)


def ends_whole(path: str | os.PathLike) -> bool:
    """False for a JPEG or PNG file that does not end as its format does: it may be cut short, which decoding tells."""
    with open(path, "rb") as file:
        start = file.read(3)
        file.seek(max(-12, -os.fstat(file.fileno()).st_size), os.SEEK_END)
        end = file.read()
    if start == b"\xff\xd8\xff":
        return end.endswith(b"\xff\xd9")
    return start != b"\x89PN" or b"IEND" in end


@contextlib.contextmanager
def _opened(path: str | os.PathLike, max_pixels: int) -> Iterator[Image.Image]:
    before = Image.MAX_IMAGE_PIXELS
    try:
        Image.MAX_IMAGE_PIXELS = max_pixels
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # such as of damaged EXIF data
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(path) as image:
                yield image
    except FileNotFoundError:
        raise InputError(path, "no such image file", "check the path") from None
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        trouble = f"is too large: it has more than the {max_pixels} pixels that are allowed"
        raise InputError(path, trouble, "shrink it, or raise data.max_pixels if you trust it") from None
    except _PILLOW_ERRORS as error:
        reason = " ".join(str(error).split())
        raise InputError(path, f"not a readable image ({reason})", _FETCH) from None
    finally:
        Image.MAX_IMAGE_PIXELS = before


def _header(image: Image.Image) -> Header:
    width, height = image.size
    if image.format == "TIFF":  # Pillow's size may already be the turned one
        width, height = image.tag_v2[256], image.tag_v2[257]
    return Header(int(width), int(height), _orientation(image), _is_deep(image))


def _orientation(image: Image.Image) -> int:
    # A PNG without EXIF data ahead of its pixels would be decoded by getexif(), to look for them behind.
    if image.format == "PNG" and not {"exif", "Raw profile type exif", "xmp", "XML:com.adobe.xmp"} & image.info.keys():
        return 1
    try:
        value = image.getexif().get(ExifTags.Base.Orientation, 1)
    except _PILLOW_ERRORS:  # the EXIF data are damaged, which no viewer minds
        return 1
    return value if value in _TURN else 1


def _is_deep(image: Image.Image) -> bool:
    """Whether the file holds more than 8 bits a channel."""
    layouts = str([tile[3] for tile in image.tile]) if image.format in ("PNG", "TIFF") else ""
    return image.mode.startswith(("I", "F")) or ";16" in layouts


def _as_rgb(image: Image.Image, scaled: bool, path: str | os.PathLike) -> np.ndarray:
    """uint8 [H, W, 3]. 16-bit grey is scaled here: Pillow's own conversion clips at 255, that is to white.

    scaled  the file's format says that white is 65535 where Pillow gives 32-bit integers
    """
    if image.mode == "F" or (image.mode == "I" and not scaled):
        kind = "floating-point" if image.mode == "F" else "32-bit"
        raise InputError(path, f"holds {kind} pixels (mode {image.mode}), whose white cannot be known", _EIGHT_BITS)
    if image.mode.startswith("I"):
        values = np.asarray(image).astype(np.int64)
        image = Image.fromarray((values >> 8).clip(0, 255).astype(np.uint8))
    return np.array(image.convert("RGB"))
