"""Typed graph propagation: `propagate` over given edges, `propagate_regions` over edges computed from boxes."""

from .api import propagate, propagate_regions
from .edges import EdgeSet
from .reference import REGION_TYPES

__all__ = ["REGION_TYPES", "EdgeSet", "propagate", "propagate_regions"]
