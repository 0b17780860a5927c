"""What every operator checks of its arguments before it is called; no operator's mathematics lives here."""

import itertools
from collections.abc import Callable

import torch


def check(condition: bool, name: str, message: Callable[[], str]) -> None:
    """Raise ValueError("name: message") unless `condition`."""
    if not condition:
        raise ValueError(f"{name}: {message()}")


def check_floats(name: str, **tensors: torch.Tensor) -> None:
    """All tensors share one floating dtype (float64, float32, bfloat16 or float16) and one device."""
    dtypes = {argument: t.dtype for argument, t in tensors.items()}
    allowed = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
    check(
        len(set(dtypes.values())) == 1 and next(iter(dtypes.values())) in allowed,
        name,
        lambda: f"wants one floating dtype, got {', '.join(f'{a} {d}' for a, d in dtypes.items())}",
    )
    check_device(name, **tensors)


def check_device(name: str, **tensors: torch.Tensor) -> None:
    """All tensors are on one device."""
    devices = {argument: t.device for argument, t in tensors.items()}
    check(
        len(set(devices.values())) == 1,
        name,
        lambda: f"wants one device, got {', '.join(f'{a} on {d}' for a, d in devices.items())}",
    )


def check_ragged(name: str, boxes: torch.Tensor, ptr: torch.Tensor, images: int | None = None) -> None:
    """`boxes` is float32 [R, 4], `ptr` int64 [B + 1] (B = `images` where given). Their values are not looked at."""
    check(
        boxes.dim() == 2 and boxes.shape[1] == 4 and boxes.dtype == torch.float32,
        name,
        lambda: f"boxes must be float32 [R, 4], got {boxes.dtype} {list(boxes.shape)}",
    )
    check_ptr(name, ptr, images)


def check_ptr(name: str, ptr: torch.Tensor, images: int | None = None) -> None:
    """`ptr` is int64 [B + 1] (B = `images` where given). Its values are not looked at."""
    check(
        ptr.dim() == 1 and ptr.dtype == torch.int64 and ptr.shape[0] >= 1,
        name,
        lambda: f"ptr must be int64 [B + 1], got {ptr.dtype} {list(ptr.shape)}",
    )
    if images is not None:
        check(
            ptr.shape[0] == images + 1,
            name,
            lambda: f"ptr must have {images + 1} entries for {images} images, got {ptr.shape[0]}",
        )


def image_slices(name: str, ptr: torch.Tensor, regions: int) -> list[slice]:
    """`ptr` as one slice of the regions per image. Copies ptr to the host: for references only."""
    bounds = ptr.tolist()
    check(
        bounds[0] == 0 and bounds[-1] == regions and bounds == sorted(bounds),
        name,
        lambda: f"ptr must rise from 0 to the number of regions ({regions}), got {bounds}",
    )
    return [slice(low, high) for low, high in itertools.pairwise(bounds)]
