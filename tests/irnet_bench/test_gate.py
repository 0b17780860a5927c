"""The gate: what it holds, what it says of a difference, and the three damages that it is there for."""

import argparse
import contextlib
import io
import json
from pathlib import Path

import pytest

from irnet.errors import InputError
from irnet_bench import gate
from irnet_bench.case import cases

ROOT = Path(__file__).resolve().parents[2]
TOYS = ROOT / "tests/irnet_bench/toy/toy_cases.py"

CASES = """
import torch
from irnet_bench.case import Implementation, Work, case

@case("kernels", cpu={"size": 100}, gate={"size": 10})
def gated(s):
    calls = 0
    def call(x):
        nonlocal calls
        calls += 1
        y = x + x
        EXTRA
        return y
    return Work([s.normal(s.size)], {"reference": Implementation(lambda x: x + x), "cpp": Implementation(call)})

@case("kernels", cpu={"size": 100}, gate={})
def not_gated(s):
    raise RuntimeError("built all the same")
"""


@pytest.fixture
def gated(tmp_path, capsys):
    """Runs the gate over a case with further statements; returns (exit code, output)."""

    def run(extra: str = "pass", *words: str):
        path = tmp_path / f"cases_{abs(hash(extra))}.py"
        path.write_text(CASES.replace("EXTRA", extra))
        parser = argparse.ArgumentParser()
        gate.add_arguments(parser)
        options = ["--cases", str(path), "--filter", "gated", "--kind", "counts"]
        options += ["--baseline", str(tmp_path / "b.json")]
        code = gate.run(parser.parse_args([*options, *words]))
        return code, capsys.readouterr().out

    return run


def test_an_unchanged_tree_passes(gated):
    code, out = gated("pass", "--update")
    assert code == 0 and "taken up" in out
    code, out = gated()
    assert code == 0, out
    assert out.strip().endswith(" figures held, 0 differ, 0 wrong")
    assert int(out.split()[0]) > 10


@pytest.mark.parametrize(
    ("extra", "words"),
    [
        ("spare = torch.empty_like(x)", "gated/cpp/float32/forward/peak_allocated_bytes: 40 -> 80, +100.0%"),
        ("y = y.neg().neg()", "gated/cpp/float32/forward/operators"),
        ("x = x.exp(); y = y + 0 * x", "gated/cpp/float32/step/saved_bytes"),
    ],
)
def test_more_memory_or_more_operators_fail(gated, extra, words):
    gated("pass", "--update")
    code, out = gated(extra)
    assert code == 1 and words in out and "if that is meant" in out
    code, out = gated(extra, "--update")
    assert code == 0 and words in out, "updating shows the difference"
    assert gated(extra)[0] == 0


def test_less_is_a_difference_too(gated):
    gated("spare = torch.empty_like(x)", "--update")
    code, out = gated()
    assert code == 1 and "less     gated/cpp/float32/forward/peak_allocated_bytes: 80 -> 40, -50.0%" in out


@pytest.mark.parametrize(
    ("extra", "words"),
    [
        ("y = y + torch.nn.functional.one_hot(torch.tensor(2), len(x)) * 1e-5", "is off by"),
        ("y = y + calls % 2 * 1e-7 * y.detach()", "the same call gave other bits"),
        ("raise MemoryError('none left')", "none left"),
    ],
)
def test_a_wrong_result_fails_without_a_baseline_and_is_never_taken_up(gated, tmp_path, extra, words):
    code, out = gated(extra)
    assert code == 1 and "WRONG    gated/cpp/float32/forward" in out and words in out
    code, out = gated(extra, "--update")
    assert code == 1 and "is no baseline" in out
    assert not (tmp_path / "b.json").exists()


def test_what_another_version_measured_is_not_held_and_stays(gated, tmp_path):
    path = tmp_path / "b.json"
    path.write_text(json.dumps({"torch 1.0": {"gated/cpp/float32/forward/operators": 7}}))
    code, out = gated()
    assert code == 1 and "not held, --add takes them up" in out, "a gate that holds nothing does not pass"
    assert "\n0 figures held, 0 differ, 0 wrong" in out and "a new version needs a new baseline" in out
    code, out = gated("pass", "--add")
    assert code == 0 and "taken up" in out
    held = json.loads(path.read_text())
    assert held["torch 1.0"] == {"gated/cpp/float32/forward/operators": 7}
    assert len(held) == 2
    # Adding never touches what is held.
    code, out = gated("y = y.neg().neg()", "--add")
    assert code == 1 and json.loads(path.read_text()) == held


def test_adding_takes_up_what_is_right_beside_what_is_wrong(gated, tmp_path):
    code, out = gated("y = y + calls % 2 * 1e-7 * y.detach()", "--add")
    assert code == 1 and "the same call gave other bits" in out
    (figures,) = json.loads((tmp_path / "b.json").read_text()).values()
    names = {name.rpartition("/")[0] for name in figures}
    wrong = {line.split()[1].rstrip(":") for line in out.splitlines() if line.startswith("WRONG")}
    assert names and wrong and not names & wrong


def test_adding_writes_after_every_case(gated, tmp_path, monkeypatch):
    """A run that is ended in the middle leaves what it has measured."""

    def ended(*arguments):
        raise KeyboardInterrupt

    monkeypatch.setattr(gate, "_read_resources", ended)  # comes after the counts
    with pytest.raises(KeyboardInterrupt):
        gated("pass", "--add", "--kind", "counts", "compiled")
    assert json.loads((tmp_path / "b.json").read_text())


def test_a_damaged_baseline_is_bad_input(gated, tmp_path):
    for text in ("{", "[1]", '{"torch": {"a": "b"}}'):
        (tmp_path / "b.json").write_text(text)
        with pytest.raises(InputError, match="is no baseline"):
            gated()


def test_what_differs():
    held = {"g": {"a/operators": 3, "a/time_ratio": 1.0, "a/executed_instructions": 1000, "gone/operators": 2}}
    now = {"g": {"a/operators": 3, "a/time_ratio": 1.07, "a/executed_instructions": 1019, "new/operators": 5}}
    now["h"] = {"x": 1}
    found, unknown = gate.differences(now, held)
    assert [(d.name, d.was, d.now) for d in found] == [("gone/operators", 2, None), ("new/operators", None, 5)]
    assert unknown == ["h"]
    assert [d.name for d in gate.differences(now, held, all_of=False)[0]] == ["new/operators"]
    for name, value in (("a/time_ratio", 1.09), ("a/executed_instructions", 1021), ("a/operators", 2)):
        found, _ = gate.differences({"g": held["g"] | {name: value}}, held)
        assert [d.name for d in found] == [name]
    found, _ = gate.differences({"g": held["g"] | {"a/time_ratio": 0.5}}, held)
    assert not found, "faster is no regression"
    found, _ = gate.differences({"g": held["g"] | {"a/executed_instructions": 500}}, held)
    assert len(found) == 1, "much less work is worth a look"


def test_updating_one_kind_drops_what_is_gone_of_it(gated, tmp_path, monkeypatch):
    """A filter leaves out cases, a kind leaves out groups of figures: those that are measured are measured whole."""
    gated("pass", "--update")
    monkeypatch.setattr(gate, "cases", lambda suite, text, files: cases(suite, "gated", files))
    path = tmp_path / "b.json"
    group, figures = next(iter(json.loads(path.read_text()).items()))
    others = {"triton 0.1": {"kernel/sm_90/registers": 7}}
    path.write_text(json.dumps({group: figures | {"old/cpp/float32/forward/operators": 7}} | others))
    code, out = gated("pass", "--filter", "")
    assert code == 1 and "gone     old/cpp/float32/forward/operators: was 7" in out
    assert gated("pass", "--filter", "", "--update")[0] == 0
    assert json.loads(path.read_text()) == {group: figures} | others


def test_updating_everything_drops_what_is_gone():
    old = {"g": {"a": 1, "gone": 2}, "other machine": {"a": 5}}
    assert gate.updated(old, {"g": {"a": 3}}, whole=True) == {"g": {"a": 3}, "other machine": {"a": 5}}
    kept = gate.updated(old, {"g": {"a": 3}}, whole=True, absent=("go",))
    assert kept["g"] == {"a": 3, "gone": 2}, "what cannot be measured here is not gone"
    assert gate.updated(old, {"g": {"a": 3}}, whole=False) == {"g": {"a": 3, "gone": 2}, "other machine": {"a": 5}}


# ------------------------------------------------------------------------------------- compiled kernels, and damage


@pytest.fixture(scope="module")
def toys(tmp_path_factory):
    """Runs the gate over the test-only kernels, as they are or damaged; returns (exit code, lines of its output)."""
    baseline = tmp_path_factory.mktemp("gate") / "b.json"

    def run(damage: str, *words: str):
        parser = argparse.ArgumentParser()
        gate.add_arguments(parser)
        options = ["--cases", str(TOYS), "--filter", "scale_add", "--baseline", str(baseline), *words]
        out = io.StringIO()
        with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(out):
            patch.setenv("IRNET_TOY_DAMAGE", damage)
            code = gate.run(parser.parse_args(options))
        return code, out.getvalue().splitlines()

    code, lines = run("", "--update")
    assert code == 0, lines
    run.absent = [line for line in lines if line.startswith("not held")]
    return run


def needs(toys, *tools: str) -> None:
    """Skip, with the gate's own reason, where it cannot measure."""
    for tool in tools:
        reasons = [line for line in toys.absent if tool in line]
        if reasons:
            pytest.skip("; ".join(reasons))


def test_the_toys_pass_as_they_are(toys):
    code, lines = toys("", "--kind", "counts", "time", "compiled")
    assert code == 0, lines
    assert "0 differ, 0 wrong" in lines[-1] and int(lines[-1].split()[0]) > 20


def test_a_slower_cpp_kernel_is_caught_by_its_time_and_its_instructions(toys):
    needs(toys, "g++", "valgrind")
    code, lines = toys("slower", "--kind", "time", "instructions")
    assert code == 1
    more = {line.split()[1] for line in lines if line.startswith("more")}
    assert {f"scale_add/cpp/float32/forward/{figure}:" for figure in ("time_ratio", "executed_instructions")} <= more


@pytest.mark.parametrize("tool", ["triton", "nvcc"])
def test_a_slower_gpu_kernel_is_caught_by_its_code_without_a_gpu(toys, tool):
    needs(toys, tool)
    code, lines = toys("slower", "--kind", "compiled")
    assert code == 1
    for target in ("sm_80", "sm_90", "sm_100"):
        assert any(f"/{target}/instructions" in line and f"({tool} " in line for line in lines if line[:4] == "more")


def test_one_more_buffer_is_caught(toys):
    needs(toys, "g++")
    code, lines = toys("buffer", "--kind", "counts")
    assert code == 1
    size = 4 * (1 << 18)
    peak = next(line for line in lines if "cpp/float32/forward/peak_allocated_bytes" in line)
    assert f"{size} -> {2 * size}" in peak


def test_one_wrong_element_is_caught(toys):
    needs(toys, "g++")
    code, lines = toys("wrong", "--kind", "counts")
    assert code == 1
    assert any(line.startswith("WRONG    scale_add/cpp/float32/forward: wrong: the result is off by") for line in lines)


@pytest.mark.parametrize(("damage", "word"), [("buffer", "peak_allocated_bytes"), ("wrong", "WRONG")])
def test_damage_to_a_triton_kernel_is_caught_in_its_interpreter(toys, monkeypatch, damage, word):
    needs(toys, "triton")
    monkeypatch.setenv("IRNET_TOY_INTERPRET", "1")
    toys("", "--kind", "counts", "--update")
    code, lines = toys(damage, "--kind", "counts")
    assert code == 1
    assert any("scale_add/triton/float32/forward" in line and word in line for line in lines)


class Takes:
    """Stands for `ratios.take`: gives the listed ratios, one for each take of the gated case's forward pass."""

    def __init__(self, *values: float):
        self.values, self.asked = list(values), []

    def __call__(self, jobs, device, files):
        self.asked.append([job.mode for job in jobs])
        value = self.values.pop(0)
        return {job: value if job.mode == "forward" else 0.5 for job in jobs}


@pytest.fixture
def timed(gated, monkeypatch):
    """Runs the gate's part on time over a case with a peer, with these takes; returns (exit code, output, asked)."""
    monkeypatch.setattr("irnet_bench.machine.others", lambda: 0.0)
    peer = 'Implementation(call), "peer": Implementation(call, True)}, baseline="peer"'
    monkeypatch.setitem(globals(), "CASES", CASES.replace("Implementation(call)}", peer))

    def run(takes: list[float], *words: str):
        take = Takes(*takes)
        monkeypatch.setattr("irnet_bench.ratios.take", take)
        return *gated("pass", "--kind", "time", *words), take.asked

    return run


@pytest.mark.parametrize("way", ["--update", "--add"])
def test_the_highest_of_all_takes_is_the_baseline_and_the_lowest_is_held_against_it(timed, tmp_path, way):
    everything = ["forward", "backward", "step"]
    code, _, asked = timed([1.0, 1.2, 1.1, 0.9, 1.0], way)
    assert code == 0 and asked == [everything] * 5
    ((group, figures),) = json.loads((tmp_path / "b.json").read_text()).items()
    assert figures["gated/cpp/float32/forward/time_ratio"] == 1.2 and group.startswith("time on ")
    assert timed([1.2 * 1.07])[::2] == (0, [everything])
    code, _, asked = timed([1.2 * 1.09, 1.2 * 1.07])
    assert code == 0 and asked == [everything, ["forward"]], "only what is not kept is taken again"
    code, out, asked = timed([1.5, 1.4, 1.31, 1.6, 1.7])
    assert code == 1 and "more     gated/cpp/float32/forward/time_ratio: 1.2 -> 1.31" in out and len(asked) == 5


@pytest.mark.parametrize(("kind", "warns"), [("time", True), ("counts", False)])
def test_times_on_a_loaded_machine_are_warned_of(gated, monkeypatch, caplog, kind, warns):
    monkeypatch.setattr("irnet_bench.machine.others", lambda: 1000.0)
    gated("pass", "--kind", kind)
    assert ("this machine is loaded" in caplog.text) == warns
