"""Tables and the README's block from made-up records, whatever is missing."""

import re
from pathlib import Path

import pytest

from irnet.errors import InputError
from irnet_bench import tables
from irnet_bench.records import Record, append
from irnet_bench.report import markdown, page
from tests.irnet_bench.made_up import CPU, GPU, INTENSITIES, MODES, SHAPE, device, plausible, readme_and_results, record
from tests.report.reader import self_contained


def row(table: tables.Table, *names: str) -> dict[str, str]:
    """The cells of the one row that begins with these names, by the head of their column."""
    (found,) = (row for row in table.rows if tuple(row[: len(names)]) == names)
    return dict(zip(table.head, found, strict=True))


def test_the_latest_record_of_a_key_counts():
    old, other, new = record(seconds=1e-3), record(mode="forward"), record(seconds=2e-3, run="r2")
    assert tables.latest([old, other, new]) == [new, other]


def test_devices_are_told_apart_by_machine_and_merged_over_files():
    one_thread = CPU | {"threads": 1}
    later = record(seconds=3e-3)
    found = tables.devices(
        [record(), record(mode="forward"), record(machine=GPU)], [later], [record(machine=one_thread)]
    )
    assert [d.name for d in found] == ["CPU AMD EPYC 7B13, 2 threads", "NVIDIA H200", "CPU AMD EPYC 7B13, 1 thread"]
    assert found[0].records == [later, record(mode="forward")]


def test_the_operators_are_shown_at_their_own_shape():
    """Though a sweep has more records, comes last and has the same shape, too."""
    swept = [record(shape=SHAPE | {"regions": n}, seconds=n, swept=True) for n in (1, 64, 100)]
    default = [record(implementation=name, seconds=5e-3) for name in ("cpp", "reference")]
    table = tables.operators(device(*default, *swept))
    assert row(table, "crop_resize", "float32", "cpp")["step, ms"] == "5.00" and len(table.rows) == 2
    assert "crop_resize at images=2 regions=64 channels=512." in table.caption


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (["reference", "cpp"], "cpp"),  # the order of impl="auto", not that of the file or of speed
        (["triton", "cuda", "reference"], "cuda"),
        (["reference", "auto"], "auto"),
        (["grad checkpointing", "reference"], "reference"),
        (["grid_sample"], None),
    ],
)
def test_peers_are_compared_with_what_auto_takes(names, expected):
    found = [record(implementation=name, seconds=1e-3 * (9 - i)) for i, name in enumerate(names)]
    (contest,) = tables.contests(found).values()
    assert tables.chosen(contest) == expected


def test_an_implementation_that_failed_is_not_the_one_compared():
    failed = record(implementation="cuda", status="error", reason="wrong")
    (contest,) = tables.contests([failed, record(implementation="reference")]).values()
    assert tables.chosen(contest) == "reference"


@pytest.mark.parametrize(
    ("value", "expected"),
    [(0, "0"), (0.0012345, "0.00123"), (1, "1.00"), (9.996, "10.0"), (99.96, "100"), (123.4, "123"), (56789, "56800")],
)
def test_significant(value, expected):
    assert tables.significant(value) == expected


@pytest.mark.parametrize("status", ["skipped", "oom", "error", "wrong"])
def test_what_did_not_run_well_shows_its_word_and_no_figure(status):
    fields = {"error": 5e-6} if status == "wrong" else {"status": status, "reason": "because <1> & | 2"}
    # Figures that a record should not have must not be shown either.
    bad = record(implementation="grid_sample", **fields, percentiles={"20": 1.0, "50": 1.0, "80": 1.0})
    found = device(record(), bad, record(mode="forward"))
    cells = row(tables.operators(found), "crop_resize", "float32", "grid_sample (peer)")
    assert [cells[name] for name in ("step, ms", "of the limit", "peak, MiB", "saved, MiB")] == [status] * 4
    assert cells["forward, ms"] == "-"
    assert tables.ratios(found).rows == [] and f"({status}): grid_sample of crop_resize" in tables.ratios(found).caption
    assert row(tables.summary(found), "crop_resize")["step: faster than peers by"] == f"grid_sample {status}"
    cells = row(tables.missing(found), "grid_sample (peer)", status)
    assert cells["reason"] == bad.reason or (status == "wrong" and "error budget" in cells["reason"])
    words = " ".join(self_contained(page([found])).words)
    assert cells["reason"] in words and "1000" not in words


@pytest.mark.parametrize(
    ("ours", "theirs", "time", "memory"),
    [
        ({}, {"seconds": 12.3e-3, "peak_allocated_bytes": 9 << 20}, "12.3 x faster", "3.00 x less"),
        ({"seconds": 3e-3}, {"peak_allocated_bytes": 2 << 20}, "3.00 x slower", "1.50 x more"),
        ({}, {"seconds": 1.04e-3}, "≈ 1.04 x faster", "equal"),
        ({"seconds": 1.001e-3}, {}, "equal", "equal"),
        ({"status": "oom"}, {}, "irnet: oom", "irnet: oom"),
        ({"peak_allocated_bytes": 0}, {}, "equal", "irnet: none"),
        ({}, {"peak_allocated_bytes": 0}, "equal", "peer: none"),
        ({"peak_allocated_bytes": None}, {"seconds": 2e-3}, "2.00 x faster", "-"),
    ],
)
def test_ratios(ours, theirs, time, memory):
    found = device(record(**ours), record(implementation="grid_sample", **theirs))
    cells = row(tables.ratios(found), "crop_resize", "float32", "cpp", "grid_sample")
    assert (cells["step"], cells["memory"], cells["forward"], cells["backward"]) == (time, memory, "-", "-")


@pytest.mark.parametrize(
    ("ours", "theirs", "reason"),
    [
        ({}, {"run": "r2", "seconds": 2e-3}, "measured in another run"),
        ({"status": "oom"}, {"status": "skipped"}, "skipped"),
        ({}, {"status": "oom"}, "oom"),
        ({"peak_allocated_bytes": None}, {"percentiles": None}, "no figure"),
    ],
)
def test_a_peer_without_a_figure_has_no_row_and_is_named_once(ours, theirs, reason):
    found = device(record(**ours), record(implementation="grid_sample", **theirs), *others())
    table = tables.ratios(found)
    assert [cells[3] for cells in table.rows] == ["torch.compile"]
    assert f"Left out ({reason}): grid_sample of crop_resize float32." in table.caption
    for text in (page([found]), markdown([found]), tables.readme_block([found])):
        assert "not in one run" not in text


def others() -> list[Record]:
    """Another case, whose peer has figures."""
    return [record("paste_mean"), record("paste_mean", "torch.compile", seconds=2e-3)]


def test_operators_and_throughput_say_what_was_measured():
    training = {"suite": "training", "case": "train_full", "items": 8, "unit": "images"}
    found = device(
        *(record(mode=mode, seconds=(i + 1) * 1e-3) for i, mode in enumerate(MODES)),
        record(implementation="auto", **training, seconds=0.5, peak_allocated_bytes=3 << 29),
    )
    assert row(tables.operators(found), "crop_resize") == {
        "operator": "crop_resize",
        "dtype": "float32",
        "implementation": "cpp",
        "forward, ms": "1.00",
        "backward, ms": "2.00",
        "step, ms": "3.00",
        "of the limit": "17 % of copy",  # 10 MB at 20 GB/s are 0.5 ms
        "peak, MiB": "3.00",
        "saved, MiB": "1.00",
    }
    cells = row(tables.throughput(found), "train_full", "float32", "auto", "step")
    assert (cells["throughput"], cells["peak, MiB"], cells["time, ms"]) == ("16.0 images/s", "1540", "500")
    assert [table.rows for table in (tables.ratios(found), tables.missing(found))] == [[], []]


def test_every_table_says_on_what_it_was_measured(both):
    cpu, gpu = both
    for make in tables.TABLES:
        assert "Measured on CPU AMD EPYC 7B13, 2 threads, torch 2.13.0+cpu, commit 4b3690b1c2, 2025-11-20." in (
            make(cpu).caption
        )
        assert make(gpu).caption.endswith("2025-11-20, measured from a modified tree.")
    other = CPU | {"commit": "abc", "dirty": True}
    two = device(record(), record(mode="forward", machine=other, time="2025-11-22T01:00:00"))
    caption = "commit 4b3690b1c2 and abc, 2025-11-20 to 2025-11-22, measured from a modified tree."
    assert tables.operators(two).caption.endswith(caption)


def test_correctness_shows_the_largest_share_of_the_budget():
    found = device(
        record(mode="forward", error=1e-7),
        record(mode="forward", error=3e-6, shape={"regions": 1}),
        record(mode="backward", error=5e-6, budget=4e-6, status="error", reason="wrong"),
        record(mode="step", error=1e-6),
        record(implementation="grid_sample", error=None),
    )
    table = tables.correctness(found)
    assert table.rows == [
        ["crop_resize", "float32", "cpp", "within: 3.0e-06 of 4.0e-06", "outside: 5.0e-06 of 4.0e-06"]
    ]


def test_sweeps_need_two_values_and_keep_their_holes():
    shapes = [{"images": 2, "regions": n} for n in (1, 10, 100)]
    found = device(
        *(record(shape=shape, seconds=1e-3 * shape["regions"]) for shape in shapes),
        record(implementation="reference", shape=shapes[0]),
        record(implementation="reference", shape=shapes[2], status="oom"),
        *(record(mode="forward", shape=shape) for shape in shapes),
        record("conv_gru", shape={"regions": 7}),
    )
    table = tables.time_by_regions(found)
    assert table.head[3:] == ["regions=1", "regions=10", "regions=100"]
    assert [row[2:] for row in table.rows] == [["cpp", "1.00", "10.0", "100"], ["reference", "1.00", "-", "oom"]]
    assert "one value only" not in table.caption
    alone = device(*found.records, record(implementation="grid_sample", shape=shapes[0]))
    assert tables.time_by_regions(alone).rows == table.rows
    assert "Left out (measured at one value only): grid_sample of crop_resize." in tables.time_by_regions(alone).caption
    assert tables.memory_by_images(found).rows == []


def test_the_readme_gets_its_tables_and_keeps_the_rest(tmp_path):
    around = [f"# t\r\n`{tables.BEGIN}` is named here\n{tables.BEGIN}", f"{tables.END}\n\nend\twithout newline"]
    readme, results = readme_and_results(tmp_path, "\nold\n".join(around))
    assert not tables.is_current(readme, [results])
    tables.write_readme(readme, tables.block_of(readme, [results]))
    once = readme.read_bytes()
    assert tables.is_current(readme, [results])
    tables.write_readme(readme, tables.block_of(readme, [results]))
    assert readme.read_bytes() == once and sorted(tmp_path.iterdir()) == [readme, results.parent]
    first, last = (part.encode() for part in around)
    assert once.startswith(first) and once.endswith(last) and b"old" not in once
    block = once[len(first) : -len(last)].decode()
    summary = tables.summary(tables.devices(plausible())[0])
    assert summary.markdown() in block and "[results](<results>)" in block
    assert len(summary.rows) == len(INTENSITIES)


def test_a_readme_edited_by_hand_or_older_than_its_results_is_not_current(tmp_path):
    readme, results = readme_and_results(tmp_path)
    tables.write_readme(readme, tables.block_of(readme, [results]))
    written = readme.read_text()
    figure = re.search(r"\d\.\d\d", written)[0]
    readme.write_text(written.replace(figure, "0.01", 1))
    assert not tables.is_current(readme, [str(results)])
    readme.write_text(written.replace("# t", "# another title"))
    assert tables.is_current(readme, [str(results)])
    append(results, [record(seconds=0.123)])
    assert not tables.is_current(readme, [str(results)])


@pytest.mark.parametrize(
    "text",
    ["none", tables.BEGIN, f"{tables.END}\n{tables.BEGIN}\n", f"{tables.BEGIN}\n{tables.BEGIN}\n{tables.END}"],
    ids=["none", "no end", "wrong order", "twice"],
)
def test_a_readme_without_its_markers_is_refused_and_left_alone(tmp_path, text):
    readme, results = readme_and_results(tmp_path, text)
    for action in (lambda: tables.write_readme(readme, "x"), lambda: tables.is_current(readme, [results])):
        with pytest.raises(InputError, match="once and in this order"):
            action()
    assert readme.read_text() == text


def test_names_cannot_break_a_table_or_forge_a_marker():
    found = [device(record(f"a|b\n{tables.END}", "<i>&*`"))]
    block = tables.readme_block(found)
    assert tables.END not in block and r"a\|b \<!-- benchmarks: end --\>" in block and "<i>" not in block


def test_the_committed_readme_is_current():
    root = Path(__file__).parents[2]
    results = sorted((root / "benchmarks" / "results").glob("*.jsonl"))
    if not results:
        pytest.skip("benchmarks/results holds no records yet")
    assert tables.is_current(root / "README.md", results), "write it with irnet bench report --readme"
