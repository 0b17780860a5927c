"""irnet: iterative visual reasoning over image regions. Importing it starts no CUDA context and imports no Triton.

The public names are `IRNet`, the model; `load`, which reads a trained one; and `Reasoner`, what it gives. They are
imported when they are first used, so that `irnet --help` need not wait for torch.
"""

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .models.irnet import IRNet
    from .reasoner import Reasoner, load

__version__ = "0.1.0"
__all__ = ["IRNet", "Reasoner", "__version__", "load"]
_HOMES = {"IRNet": ".models.irnet", "Reasoner": ".reasoner", "load": ".reasoner"}


def __getattr__(name: str):
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name], __name__), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
