"""The benchmark report from made-up records: tables, the README's block, charts and the page, whatever is missing."""

import argparse
import dataclasses
import itertools
import math
import re
import sys
import zlib
from pathlib import Path

import pytest

from irnet.cli import main
from irnet.errors import InputError
from irnet_bench import charts, compare, tables
from irnet_bench.findings import findings, sentences
from irnet_bench.records import Record, append
from irnet_bench.report import add_arguments, markdown, page, run
from tests.report.reader import self_contained

CPU = {
    "device": "cpu",
    "processor": "AMD EPYC 7B13",
    "threads": 2,
    "versions": {"irnet": "0.1.0", "torch": "2.13.0+cpu", "python": "3.11.7"},
    "commit": "4b3690b1c2d3e4f5",
    "dirty": False,
}
GPU = {
    "device": "NVIDIA H200",
    "processor": "Intel Xeon Platinum 8592",
    "capability": "9.0",
    "threads": 16,
    "versions": {"irnet": "0.1.0", "torch": "2.11.0+cu130", "triton": "3.6.0", "cuda": "13.0"},
    "commit": "4b3690b1c2d3e4f5",
    "dirty": False,
}
SHAPE = {"images": 2, "regions": 64, "channels": 512}
MODES = ("forward", "backward", "step")


def record(case="crop_resize", implementation="cpp", mode="step", seconds=1e-3, **fields) -> Record:
    """A good record that took `seconds`; fields replace what is made up here."""
    ok = fields.get("status", "ok") == "ok"
    measured = {
        "samples": [seconds],
        "percentiles": {"20": 0.95 * seconds, "50": seconds, "80": 1.05 * seconds},
        "clock": "wall",
        "items": 128,
        "unit": "regions",
        "peak_allocated_bytes": 3 << 20,
        "saved_bytes": 1 << 20,
        "fewest_bytes": 1e7,
        "fewest_flops": 3e7,
        "copy_rate": 2e10,
        "matmul_rate": 1e11,
        "limit": "copy",
        "limit_fraction": 1e7 / 2e10 / seconds,
        "error": 3e-7,
        "budget": 4e-6,
        "scale": 4.2,
    }
    made = {
        "run": "r1",
        "time": "2025-11-20T10:00:00+00:00",
        "suite": "kernels",
        "case": case,
        "implementation": implementation,
        "peer": implementation in PEERS,
        "mode": mode,
        "dtype": "float32",
        "shape": SHAPE,
        "seed": 0,
        "swept": False,
        "plan": "p1",
        "status": "ok",
        "machine": CPU,
    }
    return Record(**(made | (measured if ok else {}) | fields))


PEERS = ("torchvision roi_align", "grid_sample", "torch.compile", "PyG RGCNConv", "plain PyTorch")
SLOW = {"cuda": 1.6, "triton": 1.9, "cpp": 1.5, "auto": 1.5, "reference": 9, "grid_sample": 12, "plain PyTorch": 30}
INTENSITIES = {
    "crop_resize": 1.6, "paste_mean": 1.9, "crop_resize_clamp": 1.7, "paste_mean_nested": 2.4, "conv_gru": 220.0,
    "propagate": 48.0, "propagate_regions": 60.0, "region_adjacency": 4.0,
}  # fmt: skip


def plausible(machine: dict = CPU) -> list[Record]:
    """What a device's file may hold: operators with peers, sweeps, the model, and all that can go wrong."""
    gpu = machine is GPU
    copy, matmul = (3.9e12, {"float32": 5e13, "bfloat16": 7.2e14}) if gpu else (2.2e10, {"float32": 1.1e11})
    names = ["cuda", "triton", "reference", *PEERS] if gpu else ["cpp", "reference", *PEERS]
    found = []

    def add(case, name, mode, dtype, shape, bytes_, flops, **fields):
        limit = max(bytes_ / copy, flops / matmul[dtype])
        slow = SLOW.get(name, 2.0) * (0.7 + 0.01 * (zlib.crc32(f"{case}{name}{mode}".encode()) % 100))
        seconds = limit * slow + (6e-6 if gpu else 2e-5)
        peak = int(bytes_ * slow / 4)
        rates = {"copy_rate": copy, "matmul_rate": matmul[dtype], "fewest_bytes": bytes_, "fewest_flops": flops}
        rates |= {"limit": "copy" if bytes_ / copy == limit else "matmul", "limit_fraction": limit / seconds}
        if fields.get("status", "ok") != "ok":
            rates = {}
        else:
            rates |= {"peak_allocated_bytes": peak, "saved_bytes": peak // 3}
        kept = {"shape": shape, "dtype": dtype, "machine": machine}
        found.append(record(case, name, mode, seconds, **(kept | rates | fields)))

    for (case, intensity), dtype in itertools.product(INTENSITIES.items(), matmul):
        for name in names:
            for mode in MODES:
                trouble = {}
                if name == "PyG RGCNConv":
                    reason = "torch_geometric is not installed; pip install irnet[peers]"
                    trouble = {"status": "skipped", "reason": reason}
                if name == "torchvision roi_align" and dtype == "bfloat16":
                    trouble = {
                        "status": "error",
                        "reason": "RuntimeError: \"roi_align\" not implemented for 'BFloat16'",
                    }
                if name == "plain PyTorch" and case == "paste_mean" and mode != "forward":
                    trouble = {"status": "oom", "reason": "tried to allocate 40.00 GiB"}
                work = {"forward": 1, "backward": 2, "step": 3}[mode]
                size = work * 2e7 * (0.5 if dtype == "bfloat16" else 1)
                add(case, name, mode, dtype, SHAPE, size, size * intensity, **trouble)
    for case, regions in itertools.product(("crop_resize", "paste_mean", "propagate_regions"), (1, 10, 50, 100, 300)):
        for name in names[:4]:
            shape = SHAPE | {"regions": regions}
            size = 9.4e5 * regions
            add(case, name, "step", "float32", shape, size, size * INTENSITIES[case], swept=True)
    for variant, images in itertools.product(("full", "local"), (1, 2, 4, 8)):
        for name in ("auto", "reference", "torch.compile"):
            work, fields = images * (4e8 if gpu else 2e7), {"suite": "training", "items": images, "unit": "images"}
            if name == "reference" and images == 8:
                fields |= {"status": "oom", "reason": "tried to allocate 12.00 GiB"}
            else:
                memory = {"auto": 0.31, "reference": 0.68, "torch.compile": 0.4}[name] * images + 0.2
                fields["peak_allocated_bytes"] = int(memory * 2**30)
            add(
                f"train_{variant}",
                name,
                "step",
                "float32",
                {"images": images, "regions": 20},
                work,
                80 * work,
                swept=images > 1,
                **fields,
            )
    return found


@pytest.fixture(scope="module")
def both() -> list[tables.Device]:
    """A CPU, and a GPU measured from a modified tree."""
    modified = GPU | {"dirty": True}
    return tables.devices(plausible(CPU), [dataclasses.replace(r, machine=modified) for r in plausible(GPU)])


@pytest.fixture(scope="module")
def text(both) -> str:
    return page(both)


def device(*records: Record) -> tables.Device:
    (found,) = tables.devices(list(records))
    return found


def row(table: tables.Table, *names: str) -> dict[str, str]:
    """The cells of the one row that begins with these names, by the head of their column."""
    (found,) = (row for row in table.rows if tuple(row[: len(names)]) == names)
    return dict(zip(table.head, found, strict=True))


# ------------------------------------------------------------------------------------------------- which records count


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


# ----------------------------------------------------------------------------------------------------- cells and words


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


# ------------------------------------------------------------------------------------------------------------- findings


def test_findings_take_the_fastest_peer_of_the_same_run():
    found = device(
        record(seconds=1e-3),
        record(implementation="grid_sample", seconds=3e-3),
        record(implementation="torch.compile", seconds=2e-3),
        record(implementation="plain PyTorch", seconds=1.5e-3, run="r2"),
        record(implementation="PyG RGCNConv", status="skipped", reason="not installed"),
        record(implementation="matrix product", peer=True, seconds=5e-4),
        record(implementation="reference", seconds=1e-5),
        record(mode="forward"),
        record(mode="forward", implementation="grid_sample", seconds=1.02e-3),
    )
    assert [(f.mode, f.peer, f.ratio, f.met) for f in findings(found)] == [
        ("forward", "grid_sample", "≈ 1.02 x faster", False),
        ("step", "torch.compile", "2.00 x faster", True),
    ]
    told = sentences(found)
    assert told[0].startswith(f"On {found.name}, irnet is faster than the fastest peer in 1 of 2 cases")
    assert told[1].endswith("is missed by crop_resize float32 forward (≈ 1.02 x faster than grid_sample).")
    text = "crop_resize float32 (cpp): forward ≈ 1.02 x faster than grid_sample, step (both) 2.00 x faster than "
    assert told[2:] == [
        f"{text}torch.compile.",
        "matrix product: a yardstick, no peer, for it does the operator's own products alone.",
    ]


@pytest.mark.parametrize(
    ("seconds", "met"), [(1.2e-3, True), (1.05e-3, False), (1e-3, False), (0.8e-3, False)], ids=str
)
def test_a_bar_is_met_where_irnet_is_faster_beyond_the_spread(seconds, met):
    found = device(record(), record(implementation="grid_sample", seconds=seconds))
    assert [f.met for f in findings(found)] == [met]
    assert ("missed" in " ".join(sentences(found))) is not met


def test_no_finding_of_what_failed_or_stands_alone():
    failed = [record(status="oom"), record(implementation="grid_sample")]
    for records in (failed, [record()], [record(implementation="grid_sample")]):
        assert findings(device(*records)) == [] == sentences(device(*records))


def test_findings_come_first(both, text):
    for made in (text, markdown(both)):
        at = [made.index(escape_of(made, sentence)) for found in both for sentence in sentences(found)[:1]]
        assert at[0] < made.index("| operator |" if made.startswith("#") else "<table")
    assert text.index(sentences(both[1])[0][:40]) < text.index("<table")  # on the page, those of all devices


def escape_of(made: str, sentence: str) -> str:
    return tables.plain(sentence)[:40] if made.startswith("#") else sentence[:40]


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


def test_markdown_holds_every_table_of_every_device(both):
    text = markdown(both)
    lines = text.splitlines()
    for found in both:
        assert f"## {found.name}" in lines
        for table in (make(found) for make in tables.TABLES):
            assert f"### {table.title}" in lines
            for cells in table.rows:
                assert "| " + " | ".join(map(tables.plain, cells)) + " |" in lines


# ------------------------------------------------------------------------------------------------------------- README


def readme_and_results(folder: Path, text: str = f"# t\n\n{tables.BEGIN}\n{tables.END}\n\nend") -> tuple[Path, Path]:
    readme, results = folder / "README.md", folder / "results" / "cpu.jsonl"
    readme.write_bytes(text.encode())
    append(results, plausible())
    return readme, results


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


# ------------------------------------------------------------------------------------------------------- command line


def report(*words: object) -> int:
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    return run(parser.parse_args([str(word) for word in words]))


def test_report_prints_or_writes_and_checks(tmp_path, capsys):
    readme, results = readme_and_results(tmp_path)
    markdown, html = tmp_path / "all.md", tmp_path / "new" / "page.html"
    assert report(results) == 0
    printed = capsys.readouterr().out
    outputs = ("--readme", readme, "--markdown", markdown)
    assert report(results, *outputs, "--html", html) == 0
    assert capsys.readouterr().out.split() == [str(html), str(markdown), str(readme)]
    assert markdown.read_text() == printed and html.read_text().startswith("<!DOCTYPE html>")
    assert report(results, *outputs, "--check") == 0
    markdown.write_text(printed + "more")
    before = readme.read_text()
    readme.write_text(before.replace("faster", "better"))
    assert report(results, *outputs, "--check") == 1
    told = capsys.readouterr().err
    assert f"irnet bench report {results} --readme {readme}" in told and f"--markdown {markdown}" in told
    assert "better" in readme.read_text()  # a check writes nothing


@pytest.mark.parametrize("words", [["--check"], ["--check", "--html", "p.html", "--readme", "README.md"]])
def test_a_check_needs_something_to_check(tmp_path, words):
    with pytest.raises(InputError, match="--check"):
        report(readme_and_results(tmp_path)[1], *words)


@pytest.mark.parametrize("words", [["report", "{0}"], ["compare", "{0}", "{0}"]], ids=lambda words: words[0])
def test_a_package_of_the_extra_that_is_absent_is_named(tmp_path, capsys, monkeypatch, words):
    for name in ("pandas", "scipy", "scipy.stats"):
        monkeypatch.setitem(sys.modules, name, None)
    compare._skipped.cache_clear()
    assert main(["bench", *(word.format(readme_and_results(tmp_path)[1]) for word in words)]) == 2
    assert capsys.readouterr().err.endswith('is not installed; pip install "irnet[bench]"\n')


def test_another_package_that_is_absent_is_not_of_the_extra(tmp_path, capsys):
    """What a file of cases needs is its author's affair: the traceback names the line."""
    cases = tmp_path / "cases.py"
    cases.write_text("import no_such_package_of_ours\n")
    with pytest.raises(ModuleNotFoundError, match="no_such_package_of_ours"):
        main(["bench", "gate", "--kind", "counts", "--cases", str(cases)])


# ---------------------------------------------------------------------------------------------------- charts and page


def test_points_of_a_roofline_are_what_was_reached():
    found = device(
        record(mode="forward"),
        record("paste_mean", mode="forward", fewest_flops=None),
        record("conv_gru", mode="forward", status="oom"),
        record("propagate", mode="forward", dtype="bfloat16"),
        record("reason_full", mode="forward", suite="model"),
    )
    points, matmul, copy = charts.points(found, "float32", "forward")
    assert points == [charts.Point("crop_resize", "cpp", 3.0, 3e10)] and (matmul, copy) == (1e11, 2e10)


@pytest.mark.parametrize("wanted", [[0.5], [0.0, 0.0, 1.0], [0.2] * 8, [0.1, 0.12, 0.5, 0.97, 0.99, 1.0]])
def test_names_over_a_roofline_never_touch(wanted):
    gap = 0.05
    placed = charts._spread(wanted, gap)
    assert all(b - a > gap - 1e-9 for a, b in itertools.pairwise(placed))
    assert all(gap / 2 - 1e-9 <= place <= 1 - gap / 2 + 1e-9 for place in placed)
    if all(b - a >= gap for a, b in itertools.pairwise(wanted)):
        assert placed == pytest.approx(wanted)  # nothing is moved without need


def test_names_that_are_pushed_aside_stay_around_their_place():
    assert charts._spread([0.5, 0.5], 0.1) == pytest.approx([0.45, 0.55])


def test_labels_of_an_axis_keep_both_ends():
    assert charts._apart([1, 10, 50, 64, 100, 290, 300], math.log) == [1, 10, 50, 100, 300]
    assert charts._apart([1, 2, 4, 8], float) == [1, 2, 4, 8]


def test_every_implementation_looks_different(both):
    look = charts.styles(both)
    assert set(look) == {r.implementation for d in both for r in d.records}
    assert len(set(look.values())) == len(look)
    assert {name for name, (_, _, hollow) in look.items() if hollow} == set(PEERS)


def test_the_page_is_self_contained_and_shows_everything(both, text):
    reader = self_contained(text)
    words = " ".join(reader.words)
    charts_ = [attrs["aria-label"] for tag, attrs in reader.tags if tag == "svg" and "aria-label" in attrs]
    rooflines = [label for label in charts_ if label.startswith("Roofline")]
    assert len(rooflines) == 2 + 4  # forward and backward, in one dtype and in two
    assert len(charts_) == len(rooflines) + 2 * (2 + 3)  # memory of two cases, time of three
    assert all(f"{case} reference " in label for label in rooflines for case in INTENSITIES)
    assert all("matrix product" in label and "copy" in label for label in rooflines)
    assert any("MiB over images, train_full float32: auto 522 at 1" in label for label in charts_)
    for found in both:
        for table in (make(found) for make in tables.TABLES):
            assert table.rows and table.caption in words
            assert {cell for cells in table.rows for cell in cells} - {"-"} <= set(reader.words)
    for expected in (
        "torch_geometric is not installed",
        "reference: oom at 8",
        "Intel Xeon Platinum 8592",
        "triton 3.6.0",
    ):
        assert expected in words
    assert "sweep" not in words  # every section has something to show


def test_one_legend_names_what_the_charts_show(both, text):
    listed = re.findall(r"<li><svg.*?</svg>(.*?)</li>", text)
    assert text.count("<div class=legend>") == 1 and len(listed) == len(set(listed))
    assert set(listed) == charts.drawn(both) < {r.implementation for d in both for r in d.records}
    drawings = re.findall(r"<svg [^>]*aria-label.*?</svg>", text, re.DOTALL)
    assert drawings and not any(f">{name}</text>" in drawing for drawing in drawings for name in listed)
    assert text.index("<div class=legend>") < min(text.index(drawing) for drawing in drawings)


def test_a_modified_tree_is_pointed_out(both, text):
    assert text.count("<span class=warning>measured from a modified tree</span>") == 1
    assert "the commit alone does not give it again" in text
    assert "modified tree" not in page(both[:1])


def test_colours_only_repeat_words(text):
    for tone, words in {"up": "faster|less|within", "down": "slower|more|oom|error|outside"}.items():
        cells = re.findall(f"<td class={tone}>(.*?)</td>", text)
        assert cells and all(re.search(words, cell) for cell in cells)


def test_the_page_escapes_names():
    nasty = "<b>bold</b> & \"quoted\" 'a' | </script>"
    fields = {"machine": CPU | {"processor": nasty}, "dtype": nasty}
    found = [record(nasty, nasty, "forward", **fields, shape={nasty: n, "regions": n, "images": n}) for n in (1, 2)] + [
        record(nasty, "grid_sample", status="error", reason=nasty, **fields)
    ]
    text = page(tables.devices(found))
    reader = self_contained(text)
    assert not {"b", "script"} & {tag for tag, _ in reader.tags}
    assert nasty in reader.words


EMPTY = {field.name: None for field in dataclasses.fields(Record) if field.default is None}


@pytest.mark.parametrize(
    "records",
    [
        [],
        [record()],
        [record(implementation=name) for name in PEERS],
        [record(implementation=name, status="skipped", reason="not installed") for name in ("cpp", *PEERS)],
        [record(mode=mode, **EMPTY, machine={}) for mode in MODES],
        [record(mode="forward", machine={}, shape={}), record("x", mode="forward", suite="data", items=None)],
        [record(mode="forward", copy_rate=None), record(matmul_rate=None), record("b", fewest_bytes=0.0)],
        [record(shape={"images": n, "regions": 0}, peak_allocated_bytes=0) for n in (0, 1)],
        [record(shape={"images": n, "regions": n}, status="oom") for n in (1, 2)],
        [record(machine={"device": None, "dirty": None, "versions": None, "commit": None, "clocks": {"gpu": 1.5}})],
    ],
    ids=["nothing", "one", "peers", "skipped", "bare", "unshaped", "no-ceilings", "zeros", "oom", "no-facts"],
)
def test_tables_and_page_take_whatever_there_is(records):
    found = tables.devices(records)
    for text in (markdown(found), tables.readme_block(found), " ".join(self_contained(page(found)).words)):
        assert not re.search(r"\b(None|nan|inf)\b", text)
        assert records or "Nothing has been measured." in text
    words = " ".join(self_contained(page(found)).words)
    if not tables.time_by_regions(found[0]).rows if found else True:
        assert "irnet bench kernels --sweep regions=1,10,50,100,300" in words
    if not tables.memory_by_images(found[0]).rows if found else True:
        assert "irnet bench model --sweep images=1,2,4,8" in words
