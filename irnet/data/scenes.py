"""Scenes that irnet/scenes has generated: COCO's format, with what gives each region's class away."""

from .coco import CocoDataset


class Scenes(CocoDataset):
    """A split of generated scenes. The attribute "kind" says why a region's class can be told from its looks or not."""

    attribute_keys = ("kind",)
