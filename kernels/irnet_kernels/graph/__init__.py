"""Typed graph propagation: `propagate` over given edges, `propagate_regions` over edges computed from boxes."""

from .api import propagate, propagate_regions
from .edges import EdgeSet

__all__ = ["EdgeSet", "propagate", "propagate_regions"]
