"""The class graph from Visual Genome's relationships: spellings of predicates, merged objects, and broken files."""

import gzip
import json
import zipfile

import pytest

from irnet.class_graphs import visual_genome
from irnet.class_graphs.visual_genome import predicate_key, relate_by_predicates
from irnet.errors import InputError
from tests.class_graphs.tools import IMAGES, relationship

CLASSES = ["man", "shirt", "car", "street", "tree.n.01"]


def write(path, images=IMAGES):
    path.write_text(images if isinstance(images, str) else json.dumps(images, indent=1))
    return path


def named(relations):
    return {
        name: {(CLASSES[a], CLASSES[b]): round(weight, 4) for (a, b), weight in edges.items()}
        for name, edges in relations.items()
    }


EXPECTED = {
    "on": {("car", "street"): 0.5, ("man", "street"): 0.25, ("tree.n.01", "street"): 0.25},
    "wearing": {("man", "shirt"): 1.0},
    "parked on": {("car", "street"): 1.0},  # which has the synset of "ON"
}


@pytest.mark.parametrize("chunk", [1, 7, 1 << 20])
def test_relations(chunk, tmp_path, monkeypatch):
    monkeypatch.setattr(visual_genome, "CHUNK", chunk)
    relations = relate_by_predicates(CLASSES, write(tmp_path / "relationships.json"))
    assert named(relations) == EXPECTED
    assert list(relations) == ["on", "wearing", "parked on"]  # by their number, 4 and 4, then by their keys
    assert list(relate_by_predicates(CLASSES, tmp_path, predicates=2)) == ["on", "wearing"]


def test_counts_and_images(tmp_path):
    path = write(tmp_path / "relationships.json")
    often = named(relate_by_predicates(CLASSES, path, least=2))
    assert often == {"on": {("car", "street"): 0.5}, "wearing": {("man", "shirt"): 1.0}, "parked on": {}}
    first = named(relate_by_predicates(CLASSES, path, images={"1"}))
    assert first["on"] == {("car", "street"): 0.5, ("man", "street"): 0.5}


def test_version_1_names_an_image_by_id(tmp_path):
    images = [{"id": image["image_id"], "relationships": image["relationships"]} for image in IMAGES]
    path = write(tmp_path / "relationships.json", images)
    expected = {"on": {("car", "street"): 0.5, ("man", "street"): 0.5}, "wearing": {("man", "shirt"): 1.0}}
    relations = named(relate_by_predicates(CLASSES, path, images={"1"}))
    assert {name.lower(): edges for name, edges in relations.items() if name != "parked on"} == expected
    del images[1]["relationships"]
    with pytest.raises(InputError, match="image 2 has no list of relationships"):
        relate_by_predicates(CLASSES, write(path, images))


def test_packed_files(tmp_path):
    content = json.dumps(IMAGES).encode()
    (tmp_path / "relationships.json.gz").write_bytes(gzip.compress(content))
    assert named(relate_by_predicates(CLASSES, tmp_path)) == EXPECTED
    with zipfile.ZipFile(tmp_path / "relationships.json.zip", "w") as archive:
        archive.writestr("relationships.json", content)
    (tmp_path / "relationships.json.gz").unlink()
    assert named(relate_by_predicates(CLASSES, tmp_path)) == EXPECTED


@pytest.mark.parametrize(
    "spellings",
    [
        ("WEARING", "wears", "wear", "is wearing", "wearing a"),
        ("sitting on", "sits on", "sit on the"),
        ("riding", "rides", "ride"),
        ("carrying", "carries"),
        ("watching", "watches"),
        ("using", "uses", "use a"),
        ("lying on", "lies on", "lie on", "is lying on"),
        ("tying", "ties"),
        ("going down", "goes down", "go down"),
        ("bringing", "brings", "bring"),
        ("stringing", "strings"),
        ("has", "have", "has a", "having"),
        ("ON", "on", "on a", "is on", " On  the"),
    ],
)
def test_spellings_of_one_predicate(spellings):
    assert len({predicate_key(spelling) for spelling in spellings}) == 1


def test_predicates_that_differ():
    different = ["on", "parked on", "on top of", "in", "inside", "has", "is", "of", "behind", "across", "along", "by"]
    different += [
        "walking",
        "walking on",
        "hanging on",
        "holding",
        "held by",
        "playing",
        "standing",
        "passing",
        "one",
        "string",
        "sting",
        "bring",
        "oing",
    ]
    assert len({predicate_key(spelling) for spelling in different}) == len(different)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("", "not valid JSON in entry 0"),
        ("{}", "is no JSON list"),
        (" ,", "is no JSON list"),
        (" \n", "not valid JSON in entry 0"),
        (json.dumps(IMAGES)[:-30], "not valid JSON in entry 1"),
        ([{"image_id": 5}], "image 5 has no list of relationships"),
        ([IMAGES[0], 3], "entry 1 has no list of relationships"),
        (
            [{"image_id": 5, "relationships": [{"subject": {"name": "x"}}]}],
            "relationship 0 of image 5 has no predicate",
        ),
        ([{"image_id": 5, "relationships": [relationship("on", {"names": "car"}, "x")]}], "an end without a name"),
        ([{"image_id": 5, "relationships": [relationship("on", {"object_id": 1}, "x")]}], "an end without a name"),
    ],
)
def test_malformed_files(content, words, tmp_path):
    path = write(tmp_path / "relationships.json", content)
    with pytest.raises(InputError, match=words) as caught:
        relate_by_predicates(CLASSES, path)
    assert caught.value.where == str(path)


def test_files_that_cannot_be_read(tmp_path):
    with pytest.raises(InputError, match=r"relationships.json: cannot be read \(No such file or directory\)"):
        relate_by_predicates(CLASSES, tmp_path)
    (tmp_path / "a.zip").write_bytes(b"PK")
    with pytest.raises(InputError, match=r"a.zip: cannot be read \(File is not a zip file\)"):
        relate_by_predicates(CLASSES, tmp_path / "a.zip")
    content = json.dumps(IMAGES).encode()
    with zipfile.ZipFile(tmp_path / "b.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("b.json", content)
    (tmp_path / "b.json.gz").write_bytes(gzip.compress(content))
    for name, begin in ("b.zip", 30 + len("b.json")), ("b.json.gz", 10):  # behind the headers
        damaged = bytearray((tmp_path / name).read_bytes())
        damaged[begin] = 0xFF  # a block of a type that does not exist
        (tmp_path / name).write_bytes(damaged)
        with pytest.raises(InputError, match=rf"{name}: cannot be read \(.*invalid block type"):
            relate_by_predicates(CLASSES, tmp_path / name)
