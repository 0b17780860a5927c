"""The first minutes on a GPU: their limits, what is left of them whenever they end, what is taken along."""

import contextlib
import importlib.util
import itertools
import os
import re
import signal
import subprocess
import sys
import tarfile
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "benchmarks"))
gpu_check = importlib.import_module("gpu_check")
gpu_prepare = importlib.import_module("gpu_prepare")

NAMES = {call: [step.name for step in gpu_check.steps("cuda", Path("out"))[call]] for call in gpu_check.BUDGETS}
# Steps that note their number and wait, if they are told so, until the whole is killed.
KILLED = """
import sys
sys.path[:0] = [{benchmarks!r}]
import gpu_check
def steps(device, out):
    wait = "import time; time.sleep(60)"
    def step(number, name):
        code = f"print('begun', {{number}}, flush=True); " + (wait if number == {last} else "")
        return gpu_check.Step(name, [sys.executable, "-c", code], 50)
    return {{{call}: [step(number, name) for number, name in enumerate({names!r})]}}
gpu_check.steps = steps
gpu_check.main(["--out", {out!r}, "--call", "{call}"])
"""


def python(code: str, seconds: float = 60.0, **others):
    return gpu_check.Step("a-step", [sys.executable, "-c", code], seconds, **others)


def archived(out: Path) -> dict[str, str]:
    """The logs of the finished steps, by name."""
    if not (out / "results.tar.gz").exists():
        return {}
    with tarfile.open(out / "results.tar.gz") as archive:
        return {Path(m.name).stem: archive.extractfile(m).read().decode() for m in archive if m.isfile()}


def test_a_call_ends_in_time_whatever_its_steps_take(tmp_path, monkeypatch):
    monkeypatch.setattr(gpu_check, "GRACE", 0.5)
    steps = [python("import time; time.sleep(60)", 60)] * 3
    start = time.monotonic()
    words = [outcome.words for outcome in gpu_check.check(steps, tmp_path, 3)]
    assert time.monotonic() - start < 4
    assert words[0].startswith("FAILED (interrupted") and words[-1] == "skipped: the time of the call is spent"


def test_every_kernel_that_is_profiled_is_there():
    sources = [*(ROOT / "kernels").rglob("triton.py"), *(ROOT / "csrc/cuda").glob("*.cu")]
    kernels = re.findall(r"\b(\w+_kernel)\(", "".join(path.read_text() for path in sources))
    assert all(any(name in kernel for kernel in kernels) for name in gpu_check.PROFILED.split("|"))


def test_every_file_and_module_that_a_step_names_is_there():
    words = {word for steps in gpu_check.steps("cuda", Path("r")).values() for step in steps for word in step.command}
    files = {word for word in words if word.startswith(("tests/", "setup.py", "benchmarks/"))}
    assert files and all((ROOT / word).exists() for word in files)
    modules = {word for word in words if word.startswith(("irnet.", "irnet_kernels.", "irnet_bench."))}
    assert len(modules) >= 4 and all(importlib.util.find_spec(module) for module in modules)


@pytest.mark.parametrize(
    ("step", "words"),
    [
        (python("print('fine')"), "passed"),
        (python("print('fine'); raise SystemExit(3)"), "FAILED (exit code 3)"),
        (python("raise SystemExit(1)", absent="needs a GPU"), "skipped: needs a GPU"),
    ],
)
def test_a_step_is_told_by_its_exit_code(tmp_path, step, words):
    log = tmp_path / "log"
    assert gpu_check.run(step, log, 100).words == words
    assert ("fine" in log.read_text()) != bool(step.absent)


def test_a_step_has_its_environment_and_its_log_says_so(tmp_path):
    step = python("import os; print('cases', os.environ['IRNET_FUZZ'])", env={"IRNET_FUZZ": "30"})
    assert gpu_check.run(step, tmp_path / "log", 100).words == "passed"
    first, last = (tmp_path / "log").read_text().splitlines()
    assert first.startswith("IRNET_FUZZ=30 ") and last == "cases 30"


def test_a_step_that_takes_too_long_is_interrupted_first_and_may_say_what_it_knows(tmp_path, monkeypatch):
    monkeypatch.setattr(gpu_check, "GRACE", 2.0)
    code = "import time\ntry: time.sleep(30)\nexcept KeyboardInterrupt: print('half of it is known')"
    outcome = gpu_check.run(python(code, 1.5), tmp_path / "log", 100)
    assert outcome.words.startswith("FAILED (interrupted after") and outcome.seconds < 4
    assert "half of it is known" in (tmp_path / "log").read_text()


def test_one_that_goes_on_all_the_same_is_killed_with_all_its_processes(tmp_path, monkeypatch):
    monkeypatch.setattr(gpu_check, "GRACE", 0.5)
    code = "import signal, subprocess; signal.signal(signal.SIGINT, signal.SIG_IGN)\n"
    code += "child = subprocess.Popen(['sleep', '30']); print(child.pid, flush=True); child.wait()"
    outcome = gpu_check.run(python(code, 2.0), tmp_path / "log", 100)
    assert outcome.words.startswith("FAILED (killed after") and outcome.seconds < 5
    child = int((tmp_path / "log").read_text().split()[-1])
    time.sleep(0.1)
    assert not Path(f"/proc/{child}").exists() or "Z" in Path(f"/proc/{child}/stat").read_text().split()[2]


def test_a_step_gets_no_more_than_the_call_has_left(tmp_path, monkeypatch):
    monkeypatch.setattr(gpu_check, "GRACE", 0.5)
    assert gpu_check.run(python("import time; time.sleep(30)", 60), tmp_path / "log", 1.5).seconds < 5
    assert gpu_check.run(python("pass", 60), tmp_path / "log", 0.1).words == "skipped: the time of the call is spent"


def test_nothing_follows_a_fatal_step_that_failed(tmp_path, capsys):
    steps = [python("raise SystemExit(1)", fatal=True), python("print('in vain')")]
    outcomes = gpu_check.check(steps, tmp_path, 100)
    assert [o.words for o in outcomes] == ["FAILED (exit code 1)"]
    assert "what comes after it would tell nothing" in capsys.readouterr().out


def test_setup_is_the_fatal_one():
    calls = gpu_check.steps("cuda", Path("r"))
    assert [[step.name for step in calls[call] if step.fatal] for call in gpu_check.BUDGETS] == [["setup"], ["setup"]]


@pytest.mark.parametrize(
    ("call", "last"), [pytest.param(c, i, id=f"{c}-{name}") for c, n in NAMES.items() for i, name in enumerate(n)]
)
def test_killed_in_any_step_the_finished_ones_are_in_the_folder(call, last, tmp_path):
    out = tmp_path / "out"
    facts = {"benchmarks": str(ROOT / "benchmarks"), "last": last, "call": call, "names": NAMES[call], "out": str(out)}
    process = subprocess.Popen([sys.executable, "-c", KILLED.format(**facts)], stdout=subprocess.DEVNULL)
    current = out / "current.log"
    end = time.monotonic() + 60
    begun = False
    while not begun:
        assert time.monotonic() < end and process.poll() is None
        time.sleep(0.02)
        with contextlib.suppress(FileNotFoundError):  # between two steps it is gone
            begun = f"begun {last}" in current.read_text().splitlines()
    child = next(int(p.parent.name) for p in Path("/proc").glob("[0-9]*/stat") if _parent(p) == process.pid)
    process.kill()
    process.wait()
    os.killpg(child, signal.SIGKILL)
    assert len([path for path in out.rglob("*") if path.is_file()]) <= 8
    finished = [f"{number:02}-{name}" for number, name in enumerate(NAMES[call][:last], 1)]
    logs = archived(out)
    assert sorted(logs) == finished
    assert all(f"begun {number}" in logs[name] for number, name in enumerate(finished))
    if finished:
        summary = (out / "summary.md").read_text()
        assert all(f"| {name} | passed |" in summary for name in NAMES[call][:last])


def test_a_folder_holds_at_most_eight_files(tmp_path):
    code = "import sys, pathlib; pathlib.Path(sys.argv[1], 'failed.txt').write_text('')"
    step = gpu_check.Step("tests", [sys.executable, "-c", code, str(tmp_path)], 60)
    assert not any(o.failed for o in gpu_check.check([step, step], tmp_path, 100))
    named = {
        Path(word.removeprefix("@")).name
        for steps in gpu_check.steps("cuda", tmp_path).values()
        for word in itertools.chain.from_iterable((*step.command, *step.env.values()) for step in steps)
        if word.startswith(str(tmp_path))
    }
    assert named == {"records.jsonl", "failed.txt", "tuned.json", "baseline.json"}
    assert all(path.is_file() for path in tmp_path.iterdir())
    beside = {"current.log", "tuned.times.json"}  # while a step runs, and what tune writes
    assert len(named | {path.name for path in tmp_path.iterdir()} | beside) <= 8


def test_steps_are_chosen_by_name(tmp_path, capsys, monkeypatch):
    chosen = []
    monkeypatch.setattr(gpu_check, "check", lambda steps, out, budget: chosen.extend(s.name for s in steps) or [])
    assert gpu_check.main(["--out", str(tmp_path), "--only", "racecheck", "smoke"]) == 0
    assert chosen == ["racecheck", "smoke"]
    with pytest.raises(SystemExit, match="2"):
        gpu_check.main(["--out", str(tmp_path), "--only", "smok"])
    assert "no step is called smok; there are setup, smoke," in capsys.readouterr().err


def test_what_was_packed_is_taken_only_where_it_fits(tmp_path, monkeypatch, capsys):
    ran = []
    monkeypatch.setattr(gpu_prepare, "_python", lambda *words, env=None: ran.append(words))
    monkeypatch.setattr(gpu_prepare, "_this_gpu", dict)
    monkeypatch.setattr(gpu_prepare, "TRITON_CACHE", tmp_path / "cache")
    monkeypatch.setattr(gpu_prepare, "CACHE", tmp_path / "cache.tar.xz")
    monkeypatch.setattr(gpu_prepare, "ROOT", tmp_path)
    monkeypatch.setattr(gpu_prepare, "facts", lambda: {"torch": "2.11.0", "sources": "1"})
    for name in ("EXTENSION", "FACTS"):
        monkeypatch.setattr(gpu_prepare, name, tmp_path / name)
    (tmp_path / "kernels/irnet_kernels").mkdir(parents=True)
    gpu_prepare.unpack("cuda")
    assert ran[0][:2] == ("setup.py", "build_ext") and "differs in torch, sources" in capsys.readouterr().out
    (tmp_path / "EXTENSION").write_text("machine code")
    (tmp_path / "FACTS").write_text('{"torch": "2.11.0", "sources": "1"}')
    ran.clear()
    gpu_prepare.unpack("cuda")
    assert all(words[0] != "setup.py" for words in ran)
    assert (tmp_path / "kernels/irnet_kernels/EXTENSION").read_text() == "machine code"

    def refuses_it(*words, env=None):
        ran.append(words)
        if words[0] == "-c" and len(ran) == 1:
            raise subprocess.CalledProcessError(1, words)

    ran.clear()
    monkeypatch.setattr(gpu_prepare, "_python", refuses_it)
    gpu_prepare.unpack("cuda")
    assert [words[0] for words in ran] == ["-c", "setup.py", "-c"], "what does not load is built"


def _parent(stat: Path) -> int:
    try:
        return int(stat.read_text().rpartition(")")[2].split()[1])
    except (FileNotFoundError, ProcessLookupError):  # it has ended meanwhile
        return 0


def test_measuring_and_the_gate_need_no_library_of_the_reports(tmp_path):
    """The machine with the GPU has PyTorch and its requirements alone; of these, Jinja2 is not relied on."""
    code = """
import sys
sys.modules |= dict.fromkeys(["pandas", "scipy", "tabulate", "psutil", "jinja2", "matplotlib", "pycocotools"])
from irnet.cli import main
where, cases = sys.argv[1], ["--device", "cpu", "--filter", "segment_outer"]
small = ["--sweep", "images=1", "regions=4", "classes=8", "--pace-only", "--seconds", "0.01"]
assert not main(["bench", "kernels", *cases, *small, "--output", f"{where}/records.jsonl"])
assert not main(["bench", "gate", *cases, "--add", "--baseline", f"{where}/baseline.json", "--kind", "counts"])
"""
    done = subprocess.run([sys.executable, "-c", code, tmp_path], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert sorted(path.name for path in tmp_path.iterdir()) == ["baseline.json", "records.jsonl"]
