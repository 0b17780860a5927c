"""The file of records: appended, never changed, read back the same, and damage is named."""

import json

import pytest

from irnet.errors import InputError
from irnet_bench import records
from irnet_bench.records import Record


def a_record(**changes) -> Record:
    values = {
        "run": "a1",
        "time": "2026-01-01T00:00:00+00:00",
        "suite": "kernels",
        "case": "crop",
        "implementation": "reference",
        "peer": False,
        "mode": "forward",
        "dtype": "float32",
        "shape": {"regions": 4},
        "seed": 0,
        "swept": False,
        "plan": "p1",
        "status": "ok",
        "samples": [0.1, 0.2],
        "percentiles": {"20": 0.1, "50": 0.15, "80": 0.2},
        "machine": {"device": "cpu"},
    }
    return Record(**(values | changes))


def test_written_and_read_back_the_same(tmp_path):
    path = tmp_path / "deep" / "r.jsonl"
    wanted = [a_record(), a_record(mode="step", status="oom", reason="too big", samples=None, percentiles=None)]
    records.append(path, wanted)
    assert records.read(path) == wanted
    assert "peak_allocated_bytes" in json.loads(path.read_text().splitlines()[0]), "what is unknown is written as null"


def test_appending_keeps_every_earlier_byte(tmp_path):
    path = tmp_path / "r.jsonl"
    records.append(path, [a_record()])
    before = path.read_bytes()
    records.append(path, [a_record(run="b2")])
    assert path.read_bytes().startswith(before)
    assert [r.run for r in records.read(path)] == ["a1", "b2"]
    assert [r.run for r in records.last_run(records.read(path))] == ["b2"]


def test_a_line_that_a_kill_has_torn_off_counts_as_not_written(tmp_path):
    path = tmp_path / "r.jsonl"
    records.append(path, [a_record(), a_record(run="b2")])
    path.write_bytes(path.read_bytes()[:-40])
    assert [r.run for r in records.read(path)] == ["a1"]
    records.append(path, [a_record(run="c3")])
    assert [r.run for r in records.read(path)] == ["a1", "c3"]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"schema": 99}, "schema 99"),
        ({"status": "fine"}, "status 'fine'"),
        ({"colour": "red"}, "colour"),
        ({"dtype": ...}, "dtype"),
    ],
)
def test_a_whole_line_that_is_no_record_is_named(tmp_path, change, words):
    path = tmp_path / "r.jsonl"
    records.append(path, [a_record(), a_record()])
    lines = path.read_text().splitlines()
    values = {k: v for k, v in (json.loads(lines[1]) | change).items() if v is not ...}
    path.write_text(f"{lines[0]}\n{json.dumps(values)}\n")
    with pytest.raises(InputError, match=words) as caught:
        records.read(path)
    assert "line 2" in str(caught.value)


def test_a_file_of_something_else_is_not_taken_for_torn_records(tmp_path):
    path = tmp_path / "notes.md"
    path.write_text("# Notes\n")
    with pytest.raises(InputError, match="line 1 is no record"):
        records.read(path)


def test_a_number_that_json_does_not_know_is_never_written(tmp_path):
    with pytest.raises(ValueError, match="JSON"):
        records.append(tmp_path / "r.jsonl", [a_record(error=float("nan"))])


def test_the_key_tells_what_can_be_compared():
    assert a_record().key == a_record(run="b2", samples=[1.0], machine={}).key
    for change in ({"mode": "step"}, {"dtype": "bfloat16"}, {"shape": {"regions": 5}}, {"seed": 1}, {"case": "paste"}):
        assert a_record().key != a_record(**change).key


def test_a_file_that_cannot_be_read_or_written_is_named(tmp_path):
    with pytest.raises(InputError, match="cannot be read"):
        records.read(tmp_path / "none.jsonl")
    with pytest.raises(InputError, match="cannot be written"):
        records.append(tmp_path, [a_record()])
