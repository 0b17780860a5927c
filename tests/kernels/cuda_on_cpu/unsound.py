"""A program for test_roi_cuda.py: random calls with boxes and ptr of every unsound kind, under sanitizers.

Arrays are as long as they must be and no longer: AddressSanitizer sees an access beyond any of them. Results are not
looked at.
"""

import ctypes
import math
import random
import sys

from calls import DTYPES, ORDERS, Shape, call

CORNERS = (0.0, -1.0, 3.0, 7.5, 1e30, -1e30, 3.4e38, -3.4e38, math.inf, -math.inf, math.nan, 1e-40, -5e-5, 2.25)


def array(length: int) -> ctypes.Array:
    return (ctypes.c_char * length)()


def random_calls(library: ctypes.CDLL, pick: random.Random) -> None:
    """All four kernels once; a line tells of them before they run."""
    images, regions, channels = pick.randint(0, 3), pick.choice((0, 1, 5, 40)), pick.choice((1, 3, 4, 8, 16, 64))
    height, width, size = pick.randint(1, 20), pick.randint(1, 20), pick.choice((1, 2, 3, 7, 9, 20))
    corners = [pick.choice(CORNERS) if pick.random() < 0.3 else pick.uniform(-5, 25) for _ in range(4 * regions)]
    ptr = [regions * image // max(images, 1) for image in range(images + 1)]
    if pick.random() < 0.5:
        odd = (-(2**63), -5, 0, 1, regions // 2, regions, regions + 7, 2**31, 2**63 - 1)
        ptr = [pick.choice(odd) for _ in ptr]
    dtype, order, clamp = pick.choice(DTYPES), pick.choice(ORDERS), pick.random() < 0.5
    print(images, regions, channels, height, width, size, dtype, order, clamp, ptr, corners, flush=True)

    shape = Shape(images, regions, channels, height, width, size)
    element = {"float64": 8, "float32": 4}.get(dtype, 2) * channels
    features, to_maps = (array(images * height * width * element) for _ in range(2))
    patches, to_patches = (array(regions * size**2 * element) for _ in range(2))
    boxes, bounds = (ctypes.c_float * len(corners))(*corners), (ctypes.c_int64 * len(ptr))(*ptr)

    def run(name: str, *arguments) -> None:
        addresses = [a if isinstance(a, bool) else ctypes.addressof(a) for a in arguments]
        assert call(library, name, dtype, shape, *addresses, order=order) == 0

    run("crop_resize", features, boxes, bounds, clamp, to_patches)
    run("crop_resize_backward", patches, boxes, bounds, clamp, to_maps)
    if size > 1:
        run("paste_mean", features, patches, boxes, bounds, to_maps)
        run("paste_mean_backward", features, boxes, bounds, to_patches)


if __name__ == "__main__":
    loaded, source = ctypes.CDLL(sys.argv[1]), random.Random(0)
    for _ in range(int(sys.argv[2])):
        random_calls(loaded, source)
