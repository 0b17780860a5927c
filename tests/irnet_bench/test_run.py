"""Runs of the benchmark: which groups, what stands in the file, and going on after a stop."""

import json
import logging
import signal
import textwrap

import pytest
import torch

from irnet.cli import main
from irnet.errors import InputError
from irnet_bench import machine, records, run
from irnet_bench.case import cases
from irnet_bench.measure import Settings

CASES = """
import os, time
import torch
from irnet_bench.case import Implementation, Work, case

SHAPE = dict(size=64, times=2)

def work(s, nap=0.0):
    def call(x):
        time.sleep(nap)
        return x * 2
    def wrong(x):
        return x * 3
    peer = Implementation(None, peer=True, missing="p is not installed: pip install p")
    implementations = {"reference": Implementation(call), "peer": peer}
    if os.environ.get("WRONG"):
        implementations["cpp"] = Implementation(wrong)
    return Work([s.normal(s.size)], implementations, {"forward": 512}, items=s.size, unit="numbers")

@case("kernels", cpu=SHAPE)
def my_first(s):
    "Twice a number."
    return work(s)

@case("kernels", cpu={"size": 8})
def my_second(s):
    return work(s)

@case("kernels", cpu=SHAPE)
def my_third(s):
    return work(s, float(os.environ.get("NAP", 0)))
"""


@pytest.fixture
def case_file(tmp_path):
    path = tmp_path / "my_cases.py"
    path.write_text(textwrap.dedent(CASES))
    return path


@pytest.fixture
def mine(case_file, quick_rates):
    return cases("kernels", "my_", [str(case_file)])


def measured(groups, path, cpu, fresh=False, **options):
    return run.run(groups, path, cpu, Settings(seconds=0.0, **options), fresh)


def test_a_plan_covers_every_case_and_every_value_of_the_sweep(mine, cpu):
    groups = run.plan(mine, cpu, {})
    assert [(g.case.name, g.shape, g.dtype) for g in groups] == [
        ("my_first", {"size": 64, "times": 2}, "float32"),
        ("my_second", {"size": 8}, "float32"),
        ("my_third", {"size": 64, "times": 2}, "float32"),
    ]
    groups = run.plan(mine, cpu, {"size": [1, 2], "times": [3, 4]}, ["float32", "bfloat16"])
    assert len(groups) == 2 * 2 * 2 * 2, "the case without `times` is left out"
    assert {(g.shape["size"], g.shape["times"]) for g in groups} == {(1, 3), (1, 4), (2, 3), (2, 4)}


def test_a_sweep_that_fits_no_case_is_bad_input(mine, cpu):
    with pytest.raises(InputError, match="no case has colour; there are size, times"):
        run.plan(mine, cpu, {"colour": [1]})


def test_words_of_a_sweep():
    assert run.parse_sweep(["regions=1,10,50", "images=2"]) == {"regions": [1, 10, 50], "images": [2]}
    for word in ("regions", "regions=", "regions=a", "regions=1,-2"):
        with pytest.raises(InputError, match="--sweep"):
            run.parse_sweep([word])


def test_cases_are_chosen_by_suite_and_name(case_file):
    assert [c.name for c in cases("kernels", "my_s", [str(case_file)])] == ["my_second"]
    assert not [c for c in cases("data") if c.suite != "data"]
    with pytest.raises(InputError, match="no case of kernels contains 'nothing'"):
        cases("kernels", "nothing", [str(case_file)])
    with pytest.raises(InputError, match="is no Python file"):
        cases("kernels", "", ["none.py"])


def test_every_record_says_what_it_is_of(mine, tmp_path, cpu):
    path = tmp_path / "r.jsonl"
    found = measured(run.plan(mine, cpu, {}), path, cpu)
    assert found == records.read(path)
    assert len(found) == 3 * 2 * 3 and len({r.run for r in found}) == 1
    for r in found:
        assert r.machine["source"] == machine.source() and r.machine["threads"] == torch.get_num_threads()
        assert set(r.machine["versions"]) >= {"torch", "python", "irnet"}
        if r.implementation == "peer":
            assert (r.status, r.samples, r.peak_allocated_bytes) == ("skipped", None, None)
            assert "pip install p" in r.reason
        else:
            assert (r.status, r.items, r.unit) == ("ok", r.shape["size"], "numbers")
            assert r.copy_rate > 0 and r.matmul_rate > 0
    forward = next(r for r in found if r.mode == "forward" and r.status == "ok")
    assert forward.limit == "copy"
    assert forward.limit_fraction == pytest.approx(512 / forward.copy_rate / forward.median)


def test_the_limit_is_what_takes_longest(mine, cpu):
    group = run.plan(mine, cpu, {})[0]
    rates = {"copy": 100.0, "float32": 10.0}
    stamp = {"run": "a", "seed": 0, "plan": "p", "machine": {}}
    for fewest, limit, fraction in (((100, 5), "copy", 0.5), ((100, 15), "matmul", 0.75), ((None, 15), "matmul", 0.75)):
        figures = {"fewest_bytes": fewest[0], "fewest_flops": fewest[1], "percentiles": {"20": 2, "50": 2, "80": 2}}
        r = run.record(group, "reference", "forward", run.Result(figures=figures), rates, stamp)
        assert (r.limit, r.limit_fraction) == (limit, fraction)


def test_a_finished_run_is_followed_by_a_new_one(mine, tmp_path, cpu):
    path = tmp_path / "r.jsonl"
    groups = run.plan(mine, cpu, {})[:1]
    first, second = measured(groups, path, cpu), measured(groups, path, cpu)
    assert first[0].run != second[0].run
    assert records.read(path) == first + second


def interrupted(groups, path, cpu, monkeypatch, after: int, **options):
    """The records of a run that is stopped in its group number `after`."""
    left = iter(range(after))

    def measure(*arguments):
        if next(left, None) is None:
            raise KeyboardInterrupt
        return original(*arguments)

    original = run.measure
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(run, "measure", measure)
        measured(groups, path, cpu, **options)
    return records.read(path)


def test_an_unfinished_run_goes_on(mine, tmp_path, cpu, monkeypatch):
    path = tmp_path / "r.jsonl"
    groups = run.plan(mine, cpu, {})
    first = interrupted(groups, path, cpu, monkeypatch, after=2)
    found = measured(groups, path, cpu)
    assert {r.run for r in found} == {first[0].run}
    assert found[: len(first)] == first, "nothing is measured twice"
    assert [r.case for r in found[len(first) :]] == ["my_third"] * 6


@pytest.mark.parametrize("what", ["fresh", "source", "threads", "versions", "seed", "modes", "without", "groups"])
def test_a_run_of_another_kind_is_not_gone_on_with(mine, tmp_path, cpu, monkeypatch, what):
    path = tmp_path / "r.jsonl"
    groups = run.plan(mine, cpu, {})
    first = interrupted(groups[:2], path, cpu, monkeypatch, after=1, modes=("forward",))
    others = {"seed": {"seed": 5}, "modes": {"modes": ("forward", "step")}, "without": {"without": "peer"}}
    options = {"modes": ("forward",), "fresh": what == "fresh"} | others.get(what, {})
    if what in ("source", "threads", "versions"):
        facts = machine.facts(cpu)
        monkeypatch.setattr(machine, "facts", lambda device: facts | {what: "another"})
    found = measured(groups[: 3 if what == "groups" else 2], path, cpu, **options)
    assert first[0].run not in {r.run for r in found}
    assert {r.case for r in found} >= {"my_first", "my_second"}


def test_a_killed_process_keeps_what_it_has(irnet, case_file, tmp_path):
    """SIGINT and SIGKILL in the middle of the third case; the same command then measures only that one."""
    for number, kill in enumerate((signal.SIGINT, signal.SIGKILL)):
        path = tmp_path / f"{number}.jsonl"
        words = ["bench", "kernels", "--device", "cpu", "--filter", "my_", "--cases", case_file, "--output", path]
        words += ["--seconds", "0"]
        process = irnet.start(words, first="import os; os.environ['NAP'] = '5'")

        def two_cases_done(path=path):
            return path.exists() and "my_second" in path.read_text()

        if kill == signal.SIGKILL:
            process.kill_when(two_cases_done)
        else:
            process.signal_when(two_cases_done, kill)
            assert process.wait() == 130
            assert "SIGINT" in process.err
        kept = path.read_bytes()
        again = irnet.run(words)
        assert path.read_bytes().startswith(kept)
        lines = [json.loads(line) for line in path.read_text().splitlines()]
        assert len(lines) == 18 and len({line["run"] for line in lines}) == 1
        assert "my_third" in again.out and "going on" in again.err


def test_the_command_prints_a_table_and_fails_where_irnet_is_wrong(irnet, case_file, tmp_path):
    words = ["bench", "kernels", "--device", "cpu", "--filter", "my_second", "--cases", case_file, "--seconds", "0"]
    good = irnet.run([*words, "--output", tmp_path / "good.jsonl"])
    assert "my_second  reference       forward" in good.out
    assert "skipped: p is not installed: pip install p" in good.out
    bad = irnet.run([*words, "--output", tmp_path / "bad.jsonl"], first="import os; os.environ['WRONG'] = '1'", code=1)
    assert "error: my_second cpp forward float32 size=8: wrong: the result is off by" in bad.out


def test_an_allocation_beyond_the_machine_is_reported(irnet, case_file, tmp_path):
    """Not by the kernel's killing the process."""
    text = case_file.read_text().replace("return x * 2", "return x.new_ones(2 ** 34).sum() * x * 2")
    case_file.write_text(text)
    words = ["bench", "kernels", "--device", "cpu", "--filter", "my_second", "--cases", case_file, "--seconds", "0"]
    with open("/proc/meminfo") as file:
        available = next(int(line.split()[1]) for line in file if line.startswith("MemAvailable"))
    if available > 2**26:
        pytest.skip(f"this machine has {available // 2**20} GiB free: the test allocates 64")
    process = irnet.run([*words, "--output", tmp_path / "r.jsonl"], code=1)
    assert "oom" in process.out


def test_a_lost_device_is_recorded_and_another_process_goes_on(tmp_path, monkeypatch):
    output, started, real = tmp_path / "r.jsonl", [], run.measure

    def lost(case, *arguments):
        if not started:
            raise torch.AcceleratorError("CUDA error: an illegal memory access was encountered")
        return real(case, *arguments)

    words = ["bench", "kernels", "--device", "cpu", "--seconds", "0", "--dtype", "float32", "--mode", "forward"]
    words += [
        "--output",
        str(output),
        "--filter",
        "segment",
        "--sweep",
        "regions=2",
        "--without",
        "torch.compile",
        "--fresh",
    ]
    monkeypatch.setattr(run, "measure", lost)
    monkeypatch.setattr("sys.argv", ["irnet", *words])

    def another_process(program, command):
        started.append(command)
        raise SystemExit(main(command[3:]))

    monkeypatch.setattr("os.execv", another_process)
    with pytest.raises(SystemExit):
        main(words)
    (command,) = started
    assert command[1:3] == ["-m", "irnet.cli"] and command[3:] == words[:-1], "not afresh"
    found = records.read(output)
    assert len({record.run for record in found}) == 1
    assert [record.reason for record in found if record.case == "segment_matmul"] == [
        "the device is lost: CUDA error: an illegal memory access was encountered"
    ]
    assert all(record.status == "ok" for record in found if record.case == "segment_outer" and not record.peer)


@pytest.mark.parametrize(("taken", "warns"), [(0.2, False), (1.5, True)])
def test_a_loaded_machine_is_warned_of_once_and_recorded(mine, tmp_path, cpu, monkeypatch, caplog, taken, warns):
    monkeypatch.setattr(machine, "others", lambda: taken)
    monkeypatch.setattr(machine.os, "sched_getaffinity", lambda process: range(torch.get_num_threads()))
    found = measured(run.plan(mine, cpu, {}), tmp_path / "r.jsonl", cpu)
    assert {r.machine["others"] for r in found} == {taken}
    warnings = [r.getMessage() for r in caplog.records if r.levelno == logging.WARNING]
    assert len(warnings) == warns
    for text in warnings:
        assert text.startswith("this machine is loaded: other programs take 1.5 of") and "\n" not in text


def test_load_that_comes_later_is_warned_of(mine, tmp_path, cpu, monkeypatch, caplog):
    taken = iter([0.0, 0.0, 1.5, 1.5])
    monkeypatch.setattr(machine, "others", lambda: next(taken))
    monkeypatch.setattr(machine.os, "sched_getaffinity", lambda process: range(torch.get_num_threads()))
    measured(run.plan(mine, cpu, {}), tmp_path / "r.jsonl", cpu)
    assert caplog.text.count("this machine is loaded") == 1
