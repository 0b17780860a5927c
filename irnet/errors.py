"""The one exception for bad input. The command line prints it as a single line and exits with code 2."""

import math
import os


class InputError(Exception):
    """Something the user gave cannot be used.

    The message names the file (or the option), the trouble and the cure, so that one line is enough to go on.
    """

    def __init__(self, where: str | os.PathLike, trouble: str, cure: str):
        super().__init__(f"{where}: {trouble}; {cure}")
        self.where, self.trouble, self.cure = str(where), trouble, cure

    def __reduce__(self):
        # Exception's own pickling would call __init__ with the one finished message; loader workers send these home.
        return type(self), (self.where, self.trouble, self.cure)


def check_bounds(where: str, value: float | None, least: float, most: float = math.inf) -> None:
    """InputError, naming the option `where`, unless `value` lies within the bounds and is finite; None is no value."""
    if value is None or (least <= value <= most and abs(value) < math.inf):  # false for NaN
        return
    bounds = f"give at least {least}" if most == math.inf else f"give {least} to {most}"
    raise InputError(where, f"{value} is out of range", bounds)
