"""Groups of processes that train as one: started as torchrun starts them, recorded, and made to fail."""

import os
import random
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import torch.distributed as dist

from irnet.engine.checkpoint import LAST
from tests.engine.tools import DIE_RENAMING, DIE_WRITING

ROOT = Path(__file__).resolve().parents[2]
EVALS = ("train.eval_every=3",)  # of the run `undisturbed`
SECONDS = 120  # after which a process that hangs tells where, and is killed


class Group:
    """Processes of one run, each as torchrun would start it, with the same arguments or each with its own list."""

    def __init__(self, irnet, arguments: list, count: int, first: str = "", restarts: int = 0):
        self.store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)  # as torchrun's agent has it
        env = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": self.store.port, "WORLD_SIZE": count}
        env |= {"TORCHELASTIC_USE_AGENT_STORE": True, "TORCHELASTIC_RESTART_COUNT": restarts}
        self.ranks = []
        for rank in range(count):
            words = {key: str(value) for key, value in {**env, "RANK": rank, "LOCAL_RANK": rank}.items()}
            begin = f"import faulthandler, os, signal; os.environ.update({words}); signal.alarm({SECONDS})\n"
            begin += "faulthandler.register(signal.SIGALRM, chain=True)\n"
            own = arguments[rank] if arguments and isinstance(arguments[0], list) else arguments
            self.ranks.append(irnet.start(own, begin + first))

    def end(self, *codes: int) -> None:
        """Wait for all processes, which must end with these exit codes, or all with the one."""
        found = [process.wait() for process in self.ranks]
        expected = list(codes) if len(codes) > 1 else [*(codes or (0,))] * len(found)
        told = "\n".join(f"rank {rank}:\n{p.out}\n{p.err}" for rank, p in enumerate(self.ranks))
        assert found == expected, f"ended with {found}, not {expected}\n{told}"

    @property
    def said(self) -> list[str]:
        """The lines on standard error in which a process says why it ends."""
        return [line for p in self.ranks for line in p.err.splitlines() if line.startswith("irnet: ")]

    @property
    def err(self) -> str:
        return "".join(p.err for p in self.ranks)


def recording(path: Path) -> str:
    return f"from pathlib import Path; from tests.engine import recorded; recorded.record(Path({str(path)!r}))\n"


def failing(rank: int, step: int, error: str) -> str:
    """Python statements after which that rank raises `error` in that step."""
    return f"""
from irnet.engine import train
from irnet.errors import InputError
real = train.train_step
def train_step(*arguments):
    if arguments[-1] == {step} and os.environ["RANK"] == "{rank}":
        {error}
    return real(*arguments)
train.train_step = train_step
"""


def dying(rank: int, step: int, place: str) -> str:
    """Python statements after which that rank is killed in that step.

    Args:
        rank: Its number.
        step: Number of the step.
        place: "begin" of the step, "update" of the weights, "writing" or "renaming" of the checkpoint behind it.
    """
    hook = {"writing": DIE_WRITING, "renaming": DIE_RENAMING}.get(place, "").format(name=LAST, at=1)
    return f"""
import os, signal
from irnet.engine import train
real = train.train_step
def train_step(*arguments):
    die, here = lambda *_: os.kill(os.getpid(), signal.SIGKILL), arguments[-1] == {step}
    if os.environ["RANK"] != "{rank}" or not here:
        return real(*arguments)
    if {place!r} == "begin":
        die()
    if {place!r} == "update":
        arguments[2].register_step_post_hook(die)
    result = real(*arguments)
    exec({hook!r}, {{}})
    return result
train.train_step = train_step
"""


def kill_at_random(start: Callable[..., Group], words: list, record: Path) -> None:
    """Start two processes ten times, kill one at a place of a step, then the other, and let them come to their end.

    The steps and places are drawn, and do not depend on the machine. A kill leaves the step before, and the next comes
    in the same step or a later one, so that every one hits training.

    Args:
        start: The fixture `group`.
        words: The command line, which goes on with what is there; it saves every step.
        record: File of the images of every step.
    """
    draw = random.Random(0)
    steps = sorted([*range(1, 7), *draw.choices(range(1, 7), k=4)])
    places = ["begin", "update", "writing", "renaming", "begin"] * 2
    draw.shuffle(places)
    for attempt, (step, place) in enumerate(zip(steps, places, strict=True)):
        rank = draw.randrange(2) if place == "begin" else 0  # which alone writes, if not all do
        started = start(words, 2, recording(record) + dying(rank, step, place), restarts=attempt)
        killed, other = started.ranks[rank], started.ranks[1 - rank]
        assert killed.wait() == -signal.SIGKILL, f"{place} of step {step}\n{started.err}"
        os.kill(other.pid, signal.SIGKILL)  # one that is done waits for its parent, so the signal hits nobody else
        assert other.wait() in (2, -signal.SIGKILL), started.err
    start(words, 2, recording(record), restarts=len(steps)).end()


def torchrun(words: list, processes: int, restarts: int = 0) -> subprocess.CompletedProcess:
    """`torchrun` itself on some words, to its end."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", processes]
    command += ["--max-restarts", restarts, *words]
    env = os.environ | {"PYTHONPATH": f"{ROOT}:{ROOT / 'kernels'}", "OMP_NUM_THREADS": "1"}
    return subprocess.run([*map(str, command)], capture_output=True, text=True, timeout=SECONDS, env=env, cwd=ROOT)
