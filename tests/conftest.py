"""What tests of whole runs share: small scenes, a tiny model's settings, a finished run, and quick real processes.

The operators' tests run where there is no irnet, so it is imported within the fixtures that need it.
"""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parent.parent
TINY = [
    "model.memory_channels=4",
    "model.memory_size=4",
    "model.hidden=8",
    "model.graph_channels=4",
    "model.graph_layers=1",
    "model.backbone_channels=4",
    "model.patch_size=2",
    "model.iterations=1",
    "train.workers=0",
    "train.warmup_steps=0",
    "train.vis=0",
    "train.curve=false",
]

# Imports once, then forks a process for every command line it is told: torch takes seconds to import.
ZYGOTE = """
import json, os, signal, sys
import torch._dynamo, torch.distributed.fsdp, torch.distributed.tensor
import irnet.experiments.demo
from irnet.cli import main
# Tests may run in the background or under nohup, which leave signals ignored.
for number in (signal.SIGHUP, signal.SIGTERM):
    signal.signal(number, signal.SIG_DFL)
signal.signal(signal.SIGINT, signal.default_int_handler)
for line in sys.stdin:
    job = json.loads(line)
    if "wait" in job:
        print(os.waitstatus_to_exitcode(os.waitpid(job["wait"], 0)[1]), flush=True)
        continue
    child = os.fork()
    if not child:
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        for number, path in enumerate(job["streams"], 1):
            os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), number)
        exec(job["first"], {})
        sys.argv[1:] = job["arguments"]
        sys.exit(main())
    print(child, flush=True)
"""


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--failures", type=Path, metavar="FILE", help="print failures, and write their ids, as they come")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The longest test begins first: at the end the other worker would wait for it."""
    items.sort(key=lambda item: item.path.name != "test_real_images.py")


def pytest_sessionstart() -> None:
    torch.set_num_threads(1)  # for the fixtures of modules, which come before those of a test


def pytest_configure(config: pytest.Config) -> None:
    file = config.getoption("--failures")
    if file and not hasattr(config, "workerinput"):  # pytest-xdist's workers report to the one process that writes
        config.pluginmanager.register(Failures(file))


class Failures:
    """Tells of every failure as it comes, so that a run which is ended has told of those before its end."""

    def __init__(self, file: Path):
        self.file = file
        file.write_text("")

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.failed:
            print(f"\nFAILED {report.nodeid}\n{report.longreprtext}", flush=True)
            with open(self.file, "a") as file:
                print(report.nodeid, file=file)


class Process:
    """One `irnet` process; `out` and `err` are what it has written so far."""

    def __init__(self, zygote: "Zygote", arguments: list[str], first: str, streams: list[Path]):
        self.zygote, self.streams = zygote, streams
        job = {"arguments": [str(a) for a in arguments], "first": first, "streams": [str(s) for s in streams]}
        self.pid = zygote.ask(job)

    def wait(self) -> int:
        """Its exit code; minus the signal that ended it."""
        return self.zygote.ask({"wait": self.pid})

    def signal_when(self, condition: Callable[[], bool], number: int, seconds: float = 60) -> None:
        """Send a signal as soon as `condition` holds."""
        end = time.monotonic() + seconds
        while not condition():
            assert time.monotonic() < end, self.err
            time.sleep(0.002)
        os.kill(self.pid, number)

    def kill_when(self, condition: Callable[[], bool], seconds: float = 60) -> None:
        """SIGKILL as soon as `condition` holds."""
        self.signal_when(condition, signal.SIGKILL, seconds)
        assert self.wait() == -signal.SIGKILL, self.err

    out = property(lambda self: self.streams[0].read_bytes().decode())
    err = property(lambda self: self.streams[1].read_bytes().decode())


class Zygote:
    def __init__(self, folder: Path):
        self.folder, self.count = folder, 0
        # The models here are so small that a second thread only costs.
        env = os.environ | {
            "PYTHONPATH": f"{ROOT}:{ROOT / 'kernels'}:{ROOT / 'benchmarks'}",
            "OMP_NUM_THREADS": "1",
            "OMP_WAIT_POLICY": "passive",
        }
        self.process = subprocess.Popen(
            [sys.executable, "-c", ZYGOTE], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=env
        )

    def ask(self, job: dict) -> int:
        print(json.dumps(job), file=self.process.stdin, flush=True)
        return int(self.process.stdout.readline())

    def start(self, arguments: list, first: str = "") -> Process:
        """`irnet ARGUMENTS` in a process of its own, after the Python statements `first`."""
        self.count += 1
        return Process(self, arguments, first, [self.folder / f"{self.count}.{name}" for name in ("out", "err")])

    def run(self, arguments: list, first: str = "", code: int = 0) -> Process:
        """The same, to its end, which must be with the exit code `code`."""
        process = self.start(arguments, first)
        found = process.wait()
        assert found == code, f"exit code {found}\n{process.out}\n{process.err}"
        return process


@pytest.fixture(scope="session")
def irnet(tmp_path_factory):
    """Starts real `irnet` processes: see Zygote.start and .run."""
    zygote = Zygote(tmp_path_factory.mktemp("processes"))
    yield zygote
    zygote.process.stdin.close()
    zygote.process.wait()


@pytest.fixture(scope="session")
def scenes_root(tmp_path_factory) -> Path:
    """Eight training and four held-out scenes of 160 pixels. Not to be changed: copy it."""
    from irnet.scenes import generator as scenes

    root = tmp_path_factory.mktemp("data") / "scenes"
    scenes.generate(root, 8, 4, world=scenes.World(160), progress=False)
    return root


@pytest.fixture(scope="session")
def train_arguments(scenes_root) -> Callable[..., list[str]]:
    """The command line of a tiny training run into `output`; further words go to its end."""

    def arguments(output: Path, *more: str, data: Path = scenes_root, steps: int = 4, batch: int = 4) -> list[str]:
        words = ["train", "--small", "--data-root", data, "--output-dir", output, "--steps", steps, "-b", batch]
        words += [*TINY, "train.checkpoint_every=2", "train.log_every=1", *more]
        return [str(word) for word in words]

    return arguments


@pytest.fixture(scope="session")
def trained(tmp_path_factory, train_arguments, irnet) -> Path:
    """The folder of a finished run of four steps. Not to be changed: copy it."""
    output = tmp_path_factory.mktemp("run") / "run"
    irnet.run(train_arguments(output))
    return output


@pytest.fixture(autouse=True)
def one_thread():
    """A single thread for tiny problems, where each of pytest-xdist's workers has a core.

    Tests about threads set their own number.
    """
    torch.set_num_threads(1)


@pytest.fixture
def refused(capsys) -> Callable[..., str]:
    """Runs a command line that must end with exit code 2 and one line on standard error; returns that line."""
    from irnet.cli import main

    def run(arguments: list, *words: str) -> str:
        capsys.readouterr()
        code = main([str(a) for a in arguments])
        return one_line(code, capsys.readouterr().err, words)

    return run


@pytest.fixture
def refused_process(irnet) -> Callable[..., str]:
    """The same in a process of its own."""

    def run(arguments: list, *words: str, first: str = "") -> str:
        process = irnet.start(arguments, first)
        return one_line(process.wait(), process.err, words)

    return run


def one_line(code: int, err: str, words: tuple[str, ...]) -> str:
    assert code == 2, f"exit code {code}: {err}"
    lines = err.splitlines()
    assert "Traceback" not in err and lines[-1].startswith("irnet: "), err
    assert sum(line.startswith("irnet: ") for line in lines) == 1, err
    message = lines[-1].removeprefix("irnet: ")
    assert ": " in message and "; " in message, f"wants WHERE: TROUBLE; CURE, is {message}"
    for word in words:
        assert str(word) in message, f"{word} is not in: {message}"
    return message
