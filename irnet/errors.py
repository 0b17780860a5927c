"""The one exception for bad input. The command line prints it as a single line and exits with code 2."""

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
