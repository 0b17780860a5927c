"""The page and the Markdown of made-up records, and what the command writes and checks."""

import argparse
import re

import pytest

from irnet.errors import InputError
from irnet_bench import charts, tables
from irnet_bench.findings import sentences
from irnet_bench.report import add_arguments, markdown, page, run
from tests.irnet_bench.made_up import CPU, EMPTY, INTENSITIES, MODES, PEERS, readme_and_results, record
from tests.report.reader import self_contained


def test_findings_come_first(both, text):
    for made in (text, markdown(both)):
        at = [made.index(escape_of(made, sentence)) for found in both for sentence in sentences(found)[:1]]
        assert at[0] < made.index("| operator |" if made.startswith("#") else "<table")
    assert text.index(sentences(both[1])[0][:40]) < text.index("<table")  # on the page, those of all devices


def escape_of(made: str, sentence: str) -> str:
    return tables.plain(sentence)[:40] if made.startswith("#") else sentence[:40]


def test_markdown_holds_every_table_of_every_device(both):
    text = markdown(both)
    lines = text.splitlines()
    for found in both:
        assert f"## {found.name}" in lines
        for table in (make(found) for make in tables.TABLES):
            assert f"### {table.title}" in lines
            for cells in table.rows:
                assert "| " + " | ".join(map(tables.plain, cells)) + " |" in lines


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
