"""`python -m tests.engine.recorded FILE RANK:STEP ARGUMENTS` is `irnet ARGUMENTS`, and appends the images of every step
to FILE. That rank is killed in that step, unless torchrun has started the processes again."""

import json
import os
import signal
import sys
from pathlib import Path

from irnet.cli import main
from irnet.engine import train

RANK, RESTARTS = int(os.environ.get("RANK", "0")), int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0"))


def record(path: Path, killed: str = "") -> None:
    """Append to `path` a line for every step of this process from now on; `killed` is RANK:STEP."""
    real = train.train_step

    def train_step(model, batch, optimizer, scaler, config, number):
        with open(path, "a") as file:
            file.write(json.dumps([RESTARTS, number, RANK, batch.names]) + "\n")
        if killed == f"{RANK}:{number}" and not RESTARTS:
            os.kill(os.getpid(), signal.SIGKILL)
        return real(model, batch, optimizer, scaler, config, number)

    train.train_step = train_step


def images_of(path: Path) -> dict[int, list[str]]:
    """The images of every step by its number, sorted; of a step that was done again, those of the last time."""
    records = [json.loads(line) for line in path.read_text().splitlines()]
    last = {number: restarts for restarts, number, _, _ in sorted(records)}
    steps: dict[int, list[str]] = {number: [] for number in last}
    for restarts, number, _, names in records:
        if restarts == last[number]:
            steps[number] += names
    return {number: sorted(names) for number, names in steps.items()}


if __name__ == "__main__":
    record(Path(sys.argv.pop(1)), sys.argv.pop(1))
    sys.exit(main())
