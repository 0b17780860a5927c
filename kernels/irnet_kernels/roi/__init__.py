"""Region-of-interest operators: from map to patches (`crop_resize`) and back (`paste_mean`)."""

from .api import crop_resize, paste_mean

__all__ = ["crop_resize", "paste_mean"]
