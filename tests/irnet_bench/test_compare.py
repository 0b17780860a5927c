"""`irnet bench compare`: what it catches, what it lets pass, what it refuses. Records are made up, nothing is timed."""

import argparse
import math
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from irnet.errors import InputError
from irnet_bench import records
from irnet_bench.compare import MEMORY, add_arguments, compare, median_interval, run, text
from irnet_bench.records import Record

MACHINE = {
    "device": "cpu",
    "processor": "Some CPU",
    "capability": "AVX512",
    "threads": 2,
    "versions": {"torch": "2.13.0", "triton": "3.7.1"},
    "commit": "0123456789abcdef",
    "dirty": False,
}


def times(middle=1e-3, noise=0.01, count=30, seed=0):
    """Lognormal samples whose true median is `middle`."""
    draw = random.Random(seed)
    return [middle * math.exp(draw.gauss(0, noise)) for _ in range(count)]


def record(case="crop", implementation="reference", machine=None, samples=(), status="ok", **more):
    """A record; one that is ok has times and memory unless told otherwise."""
    fields = {"run": "r", "time": "2026-01-01T00:00:00", "suite": "kernels", "peer": False, "mode": "forward"}
    fields |= {"dtype": "float32", "shape": {"regions": 64}, "seed": 0, "swept": False, "plan": "p"}
    fields["machine"] = MACHINE | (machine or {})
    if status == "ok":
        fields |= {"samples": times() if samples == () else samples, "error": 1e-7, "budget": 1e-6}
        fields |= {"peak_allocated_bytes": 1_000_000, "allocated_bytes": 3_000_000, "saved_bytes": 2_000_000}
    return Record(case=case, implementation=implementation, status=status, **(fields | more))


def words(comparison):
    """What was found, of all rows."""
    return [f.word for row in comparison.rows for f in row.findings]


def compared(before, after, **options):
    """The one row of two records, and its words."""
    comparison = compare([before], [after], **options)
    (row,) = comparison.rows
    assert comparison.fails == row.fails
    return row, words(comparison)


# --------------------------------------------------------------------------------------------------------------- time


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize(
    ("factor", "noise", "expected", "fails"),
    [
        pytest.param(1.15, 0.02, ["slower"], True, id="15-percent-slower"),
        pytest.param(1 / 1.15, 0.02, ["faster"], True, id="15-percent-faster"),
        pytest.param(1.05, 0.005, [], False, id="5-percent-slower"),
        pytest.param(1 / 1.05, 0.005, [], False, id="5-percent-faster"),
        pytest.param(1.0, 0.02, [], False, id="unchanged"),
    ],
)
def test_time_beyond_the_limit_fails_in_both_directions(factor, noise, expected, fails, seed):
    before = record(samples=times(noise=noise, seed=seed))
    after = record(samples=times(1e-3 * factor, noise, seed=seed + 100))
    row, found = compared(before, after)
    assert (found, row.fails) == (expected, fails)
    assert row.time.low <= factor <= row.time.high


def test_a_change_within_the_noise_is_told_but_passes():
    samples = times(noise=1.0)
    row, found = compared(record(samples=samples), record(samples=[1.15 * s for s in samples]))
    assert row.time.value == pytest.approx(1.15)
    assert row.time.low < 1 < row.time.high
    assert (found, row.fails) == (["unclear"], False)


def test_one_sample_is_its_own_interval_and_says_so():
    row, found = compared(record(samples=[1.0]), record(samples=[1.2]))
    assert (row.time.low, row.time.value, row.time.high) == (1.2, 1.2, 1.2)
    assert (found, row.fails) == (["slower"], True)
    assert "from only 1 and 1 samples" in row.findings[0].detail
    assert not compared(record(samples=[1.0]), record(samples=[1.06]))[0].fails


def test_limits_can_be_moved():
    before, after = record(), record(samples=times(1.15e-3), saved_bytes=2_100_000)
    assert compared(before, after)[1] == ["slower", "saved larger"]
    assert compared(before, after, time_limit=0.2)[1] == ["saved larger"]
    assert compared(before, after, memory_limit=0.1)[1] == ["slower"]


def test_another_clock_is_told_beside_the_change():
    row, _ = compared(record(clock="events"), record(samples=times(0.5e-3), clock="graph"))
    assert row.fails
    assert "clock events -> graph" in row.findings[0].detail


@pytest.mark.parametrize("bad", [0.0, -1.0, math.nan, math.inf])
def test_samples_that_are_no_times_are_refused(bad):
    with pytest.raises(InputError, match="no times"):
        compare([record()], [record(samples=[1e-3, bad])])


@pytest.mark.parametrize(
    ("count", "skipped"), [(1, 0), (2, 0), (5, 0), (6, 0), (8, 0), (9, 1), (12, 2), (15, 3), (20, 5), (25, 7), (50, 17)]
)
def test_median_interval_agrees_with_the_tables_of_the_sign_test(count, skipped):
    # Critical values of the two-sided sign test at 5%, as printed in tables; below 6 it rejects nothing.
    samples = list(range(count))
    random.Random(count).shuffle(samples)
    assert median_interval(samples) == (skipped, count - 1 - skipped)


@pytest.mark.parametrize("count", [6, 10, 31, 100])
@pytest.mark.parametrize("shape", ["normal", "lognormal"])
def test_median_interval_covers_the_true_median(shape, count):
    draw, repeats = random.Random(count), 2000
    sample = {"normal": lambda: draw.gauss(0, 1), "lognormal": lambda: draw.lognormvariate(0, 1)}[shape]
    truth = {"normal": 0.0, "lognormal": 1.0}[shape]
    covered = 0
    for _ in range(repeats):
        low, high = median_interval([sample() for _ in range(count)])
        covered += low <= truth <= high
    # At least 95% by construction; the fraction of 2000 repeats has a standard deviation of 0.5%.
    assert covered / repeats > 0.935


# ------------------------------------------------------------------------------------------------- memory, correctness


@pytest.mark.parametrize("name", [name for name in MEMORY if name != "peak_reserved_bytes"])
@pytest.mark.parametrize(
    ("before", "after", "word"),
    [
        (1_000_000, 1_011_000, "larger"),
        (1_011_000, 1_000_000, "smaller"),
        (10_101, 10_000, "smaller"),  # by less than 1% of the larger
        (1_000_000, 1_009_000, None),
        (1_009_000, 1_000_000, None),
        (0, 1, "larger"),
        (1, 0, "smaller"),
        (0, 0, None),
    ],
)
def test_memory_beyond_the_limit_fails_in_both_directions(name, before, after, word):
    row, found = compared(record(**{name: before}), record(**{name: after}))
    short = name.removesuffix("_bytes").replace("_", " ")
    assert found == ([f"{short} {word}"] if word else [])
    assert row.fails == bool(word)


def test_reserved_memory_is_only_told():
    row, found = compared(record(peak_reserved_bytes=2**21), record(peak_reserved_bytes=2**22))
    assert (found, row.fails, row.memory["peak_reserved_bytes"]) == (["peak reserved larger"], False, 2)


@pytest.mark.parametrize("name", ["samples", "saved_bytes", "error"])
def test_what_only_one_side_measured_is_told_but_passes(name):
    what = "time" if name == "samples" else name
    for lacking, one, other in (("A", {name: None}, {}), ("B", {}, {name: None})):
        row, found = compared(record(**one), record(**other))
        assert (found, row.fails) == ([f"{what} not measured in {lacking}"], False)
    assert compared(record(**{name: None}), record(**{name: None}))[1] == []


@pytest.mark.parametrize("error", [1.1e-6, math.nan])
def test_an_error_beyond_the_budget_fails_wherever_it_stands(error):
    right, wrong = record(), record(error=error)
    assert compared(right, wrong)[1] == ["wrong"]
    assert compare([right], [wrong]).fails
    assert compare([wrong], [wrong]).fails, "it is no excuse that A was wrong too"
    assert not compare([wrong], [right]).fails
    assert compare([right], [right, record("paste", error=error)]).fails, "nor that the case is new"
    assert not compare([right], [record(error=1e-6)]).fails, "at the budget is within it"


@pytest.mark.parametrize("status", ["error", "oom", "skipped"])
def test_a_lost_result_fails_and_a_gained_one_is_told(status):
    good, bad = record(), record(status=status, reason="why not")
    row, found = compared(good, bad)
    assert (found, row.fails) == ([f"ok -> {status}"], True)
    assert "why not" in row.findings[0].detail
    other = record("paste")
    for before, after, expected in ((bad, good, [f"{status} -> ok"]), (bad, bad, [])):
        comparison = compare([before, other], [after, other])
        assert (words(comparison), comparison.fails) == (expected, False)


# --------------------------------------------------------------------------------------------------------------- peers


def test_a_peer_fails_nothing_but_tells_of_drift():
    ours, peer = record(), record(implementation="torchvision", peer=True)
    slow = record(implementation="torchvision", peer=True, samples=times(1.2e-3), saved_bytes=1, error=1.0)
    lost = record(implementation="torchvision", peer=True, status="skipped", reason="not installed")
    comparison = compare([ours, peer], [ours, slow])
    assert (words(comparison), comparison.fails) == (["slower", "saved smaller", "wrong"], False)
    assert any("1 of 1 peers took another time" in note for note in comparison.notes)
    for after, word in ((lost, "ok -> skipped"), (None, "missing in B")):
        comparison = compare([ours, peer], [r for r in (ours, after) if r])
        assert (words(comparison), comparison.fails) == ([word], False)
        assert not any("peers" in note for note in comparison.notes)


# --------------------------------------------------------------------------------------------- which records, machines


def test_missing_cases_are_listed_and_fail_new_ones_are_listed():
    a, b, c = record("crop"), record("paste"), record("gru")
    skipped = record("propagate", status="skipped", reason="no compiler")
    comparison = compare([a, b, skipped], [a, c])
    found = {row.record.case: (row.verdict, row.fails) for row in comparison.rows}
    assert found == {
        "crop": ("same", False),
        "paste": ("FAIL missing in B", True),
        "propagate": ("missing in B", False),
        "gru": ("new in B", False),
    }
    assert "1 compared, 2 missing in B, 1 new in B: 1 FAIL" in text(comparison)


def test_every_part_of_the_key_keeps_records_apart():
    changes = [
        {"suite": "model"},
        {"case": "paste"},
        {"implementation": "cpp"},
        {"mode": "step"},
        {"dtype": "bfloat16"},
        {"shape": {"regions": 65}},
        {"seed": 1},
        {"machine": {"device": "NVIDIA H200"}},
    ]
    both = [record(), *(record(**change) for change in changes)]
    assert [row.verdict for row in compare(both, both).rows] == ["same"] * len(both)
    for change in changes:
        verdicts = [row.verdict for row in compare(both, [r for r in both if r != record(**change)]).rows]
        assert sorted(verdicts) == ["FAIL missing in B"] + ["same"] * (len(both) - 1)


def test_the_latest_record_of_a_key_counts_whatever_its_run_and_status():
    first, slow, lost = record(run="1"), record(run="2", samples=times(2e-3)), record(run="3", status="oom")
    other = record("paste", run="1")
    assert words(compare([first], [slow, first])) == []
    assert words(compare([first], [first, slow])) == ["slower"]
    assert words(compare([first], [first, slow, lost])) == ["ok -> oom"]
    comparison = compare([other, first], [other, first, slow])
    assert [row.verdict for row in comparison.rows] == ["same", "FAIL slower"], "paste is of an earlier run, and counts"


@pytest.mark.parametrize(
    ("fact", "value"),
    [("device", "NVIDIA H200"), ("processor", "Other CPU"), ("capability", "AVX2"), ("threads", 4)],
)
def test_other_machines_are_refused_unless_allowed(fact, value):
    here, there = record(), record(machine={fact: value}, samples=times(2e-3))
    with pytest.raises(InputError, match=f"different machines: {fact} {MACHINE[fact]} and {value}"):
        compare([here], [there])
    with pytest.raises(InputError, match="different machines"):  # also where only one of the cases was measured there
        compare([here, record("paste")], [there, record("paste", machine={fact: value})])
    row, found = compared(here, there, different_machines=True)
    assert (found, row.fails) == (["slower"], True)
    assert row.time.value == pytest.approx(2)


def test_a_file_of_two_devices_is_compared_device_by_device():
    cpu, gpu = record(), record(machine={"device": "NVIDIA H200"}, samples=times(1e-5))
    for options in ({}, {"different_machines": True}):
        comparison = compare([cpu, gpu], [gpu, cpu], **options)
        assert [row.verdict for row in comparison.rows] == ["same", "same"]
    comparison = compare([cpu, gpu], [cpu])
    assert [row.verdict for row in comparison.rows] == ["same", "FAIL missing in B"]
    assert "device=NVIDIA H200" in text(comparison)


def test_versions_and_commits_are_noted():
    before, after = record(), record(machine={"versions": {"torch": "2.11.0"}, "dirty": True})
    notes = compare([before], [after]).notes
    assert "torch 2.13.0 in A, 2.11.0 in B" in notes
    assert "triton 3.7.1 in A, None in B" in notes
    assert notes[0].endswith("threads 2, commit 0123456789ab")
    assert notes[1].endswith("threads 2, commit 0123456789ab with changes")
    mixed = compare([before], [before, record("paste", machine={"commit": "fedcba9876543210"})]).notes
    assert "commit 0123456789ab; and" in mixed[1]
    assert "commit fedcba987654" in mixed[1]


@pytest.mark.parametrize(
    ("before", "after", "trouble"),
    [
        ([], [record()], "A: holds no record"),
        ([record()], [], "B: holds no record"),
        ([record(status="skipped")], [record(status="skipped")], "no measured record in common"),
        ([record(status="oom")], [record("paste")], "no measured record in common"),
    ],
)
def test_what_cannot_be_compared_is_refused(before, after, trouble):
    with pytest.raises(InputError, match=trouble):
        compare(before, after)


# ---------------------------------------------------------------------------------------------------------- properties


@st.composite
def files(draw):
    """Records of up to 4 cases: any status, memory from 0, few or many samples close enough to overlap at times."""
    made = []
    for case in draw(st.sets(st.sampled_from("abcd"), min_size=1)):
        samples = draw(st.lists(st.floats(0.9, 1.2), min_size=1, max_size=12))
        memory = {
            name: draw(st.none() | st.sampled_from([0, 10_000, 10_090, 10_100, 10_101, 10_300])) for name in MEMORY
        }
        if draw(st.integers(0, 5)):
            made.append(record(case, samples=draw(st.sampled_from([samples, samples * 10, None])), **memory))
        else:
            made.append(record(case, status=draw(st.sampled_from(["oom", "error", "skipped"]))))
    return [record("always"), *made]


@settings(max_examples=150, deadline=None, derandomize=True, database=None)
@given(a=files(), b=files())
def test_exchanging_the_files_exchanges_the_ratios_and_keeps_the_failures(a, b):
    there = {row.record.case: row for row in compare(a, b).rows}
    back = {row.record.case: row for row in compare(b, a).rows}
    assert there.keys() == back.keys()
    for case, row in there.items():
        other = back[case]
        assert (row.time is None) == (other.time is None)
        if row.time:
            assert row.time.value * other.time.value == pytest.approx(1)
            assert row.time.low * other.time.high == pytest.approx(1)
            assert row.time.high * other.time.low == pytest.approx(1)
            assert row.time.low <= row.time.value <= row.time.high
        assert row.memory.keys() == other.memory.keys()
        for name, ratio in row.memory.items():
            assert {ratio, other.memory[name]} == {0, math.inf} or ratio * other.memory[name] == pytest.approx(1)
        failing, failing_back = (
            {f.what for f in r.findings if f.fails and f.what in ("time", *MEMORY)} for r in (row, other)
        )
        assert failing == failing_back


@settings(max_examples=50, deadline=None, derandomize=True, database=None)
@given(a=files())
def test_a_file_never_differs_from_itself(a):
    comparison = compare(a, a)
    assert (words(comparison), comparison.fails) == ([], False)
    assert all(row.time is None or row.time.value == 1 for row in comparison.rows)
    text(comparison)


# -------------------------------------------------------------------------------------------------------- text, options


def test_text_has_a_line_per_key_and_the_failures_last():
    def steady(case, milliseconds, regions=64, **more):
        return record(case, samples=[milliseconds * 1e-3] * 9, shape={"regions": regions, "channels": 512}, **more)

    peer = steady("paste", 4, implementation="torchvision", peer=True)
    before = [steady("crop", 1, 1), steady("crop", 1, 10), steady("paste", 2), peer]
    after = [steady("crop", 1.04, 1), steady("crop", 1.25, 10, allocated_bytes=3_300_000)]
    after += [steady("paste", 0.5, peak_allocated_bytes=500_000, peak_reserved_bytes=1), steady("gru", 0.02)]
    lines = text(compare(before, after)).splitlines()
    head = next(at for at, line in enumerate(lines) if line.startswith("case"))
    assert [" ".join(line.split()) for line in lines[head + 1 :]] == [
        "crop reference forward float32 regions=1 1 ms 1.04 ms 1.040 [1.040, 1.040] 1.000 same",
        "crop reference forward float32 regions=10 1 ms 1.25 ms 1.250 [1.250, 1.250] 1.000"
        " FAIL slower, allocated larger",
        "paste reference forward float32 2 ms 0.5 ms 0.250 [0.250, 0.250] 0.500"
        " FAIL faster, peak allocated smaller, peak_reserved_bytes not measured in A",
        "paste torchvision forward float32 4 ms - - - missing in B",
        "gru reference forward float32 - 20 us - - new in B",
        "",
        "note paste reference forward float32 regions=64 channels=512: peak_reserved_bytes not measured in A",
        "note paste torchvision forward float32 regions=64 channels=512 (peer): missing in B, ok in A",
        "note gru reference forward float32 regions=64 channels=512: new in B, ok",
        "FAIL crop reference forward float32 regions=10 channels=512:"
        " slower: 1.250 [1.250, 1.250] times the time, 1 ms -> 1.25 ms",
        "FAIL crop reference forward float32 regions=10 channels=512: allocated_bytes larger: 3,000,000 -> 3,300,000",
        "FAIL paste reference forward float32 regions=64 channels=512:"
        " faster: 0.250 [0.250, 0.250] times the time, 2 ms -> 0.5 ms",
        "FAIL paste reference forward float32 regions=64 channels=512:"
        " peak_allocated_bytes smaller: 1,000,000 -> 500,000",
        "3 compared, 1 missing in B, 1 new in B: 2 FAIL",
    ]


@pytest.fixture
def command(tmp_path):
    """Run the command on two lists of records and options; returns its exit code."""

    def go(before, after, *words):
        parser = argparse.ArgumentParser()
        add_arguments(parser)
        paths = [tmp_path / "a.jsonl", tmp_path / "b.jsonl"]
        for path, some in zip(paths, (before, after), strict=True):
            path.unlink(missing_ok=True)
            records.append(path, some)
        return run(parser.parse_args([*map(str, paths), *words]))

    return go


def test_exit_codes_and_options(command, capsys):
    before, slow = [record()], [record(samples=times(1.15e-3))]
    assert command(before, before) == 0
    assert "0 FAIL" in capsys.readouterr().out
    assert command(before, slow) == 1
    out = capsys.readouterr().out
    assert "a.jsonl" in out.splitlines()[0]
    assert "FAIL slower" in out
    assert command(before, slow, "--time-limit", "0.2") == 0
    larger = [record(saved_bytes=2_100_000)]
    assert command(before, larger) == 1
    assert command(before, larger, "--memory-limit", "0.1") == 0
    elsewhere = [record(machine={"threads": 8})]
    assert command(before, elsewhere, "--different-machines") == 0
    with pytest.raises(InputError, match="threads 2 and 8"):
        command(before, elsewhere)
    with pytest.raises(InputError, match=r"b\.jsonl: holds no record"):
        command(before, [])
    for bad in ("-0.1", "nan"):
        with pytest.raises(InputError, match="--time-limit"):
            command(before, before, f"--time-limit={bad}")
