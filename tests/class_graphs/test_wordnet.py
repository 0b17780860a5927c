"""WordNet's own files, senses of names, and the class graph from them."""

import zipfile
from pathlib import Path

import pytest

from irnet.class_graphs.combine import combine
from irnet.class_graphs.wndb import Nouns
from irnet.class_graphs.wordnet import choose_senses, read_senses, relate_by_wordnet, senses_text
from irnet.errors import InputError
from tests.class_graphs.tools import SYNSETS, write_wordnet

DEBIAN = Path("/usr/share/wordnet")


@pytest.fixture
def nouns(tmp_path):
    write_wordnet(tmp_path / "wordnet")
    return Nouns(tmp_path / "wordnet")


def edges(classes, nouns, given=None, relation="is_kind_of"):
    relations = relate_by_wordnet(nouns, choose_senses(classes, nouns, given or {}))
    assert {(b, a) for a, b in relations["is_kind_of"]} == set(relations["has_kind"])
    assert {(b, a) for a, b in relations["is_part_of"]} == set(relations["has_part"])
    return {(classes[a], classes[b]) for a, b in relations[relation]}


COCO = ["person", "hot dog", "sandwich", "donut", "cake", "toaster", "tv", "sports ball"]


def test_kinds_of_food_and_no_toaster_among_persons(nouns):
    assert edges(COCO, nouns) == {("hot dog", "sandwich"), ("donut", "cake")}
    keys = choose_senses(COCO, nouns, {}).keys
    assert keys == [
        "person.n.01", "hot_dog.n.02", "sandwich.n.01", "donut.n.01", "cake.n.02", "toaster.n.02", "tv.n.02", None
    ]  # fmt: skip


def test_names_that_are_synsets(nouns):
    names = ["toaster.n.01", "person.n.01", "hot_dog.n.02", "sandwich"]
    assert edges(names, nouns) == {("toaster.n.01", "person.n.01"), ("hot_dog.n.02", "sandwich")}
    with pytest.raises(InputError, match=r"WordNet has no sense 'toaster\.n\.03'"):
        choose_senses(["toaster.n.03"], nouns, {})
    assert choose_senses(["toaster.n.03"], nouns, {"toaster.n.03": None}).keys == [None]


def test_without_a_donut_a_cake_is_what_it_most_often_is(nouns):
    assert choose_senses(["cake", "man"], nouns, {}).keys == ["cake.n.01", "man.n.01"]


def test_senses_by_hand(nouns):
    assert edges(COCO, nouns, {"toaster": "toaster.n.01"}) >= {("toaster", "person")}
    assert edges(COCO, nouns, {"donut": None}) == {("hot dog", "sandwich")}
    assert edges(COCO, nouns, {"sports ball": "hot dog.n.2"}) >= {("sports ball", "sandwich")}


def test_parts_come_down_to_kinds(nouns):
    classes = ["wheel", "car", "wheeled vehicle", "sixteen"]
    expected = {("wheel", "car"), ("wheel", "wheeled vehicle"), ("wheel", "sixteen")}
    assert edges(classes, nouns, relation="is_part_of") == expected
    # The nearest class alone; and a synset of sixteen words, counted in hexadecimal, has its pointers.
    assert edges(classes, nouns) == {("car", "wheeled vehicle"), ("sixteen", "car")}
    assert edges(["wheeled vehicle", "sixteen"], nouns) == {("sixteen", "wheeled vehicle")}


def test_names_of_one_sense_are_no_kinds_of_each_other(nouns):
    assert edges(["sofa", "couch", "entity"], nouns) == {("sofa", "entity"), ("couch", "entity")}


@pytest.mark.parametrize(
    ("name", "lemma"),
    [
        ("hot dog", "hot_dog"),
        ("Hot_Dog", "hot_dog"),
        ("wine glass", "wineglass"),
        ("people", "person"),
        ("cars", "car"),
        ("couches", "couch"),
        ("glass", None),
        ("potted plant", None),
        ("", None),
    ],
)
def test_lemmas(name, lemma, nouns):
    assert nouns.lemma(name) == lemma


def test_a_written_list_of_senses_is_read_back(nouns, tmp_path):
    senses = choose_senses(COCO, nouns, {"toaster": "toaster.n.01", "donut": None})
    (tmp_path / "senses.txt").write_text(senses_text(COCO, nouns, senses))
    given = read_senses([str(tmp_path / "senses.txt"), "tv=tv.n.01"])
    assert given | {"tv": "tv.n.02"} == dict(zip(COCO, senses.keys, strict=True)) and given["tv"] == "tv.n.01"
    assert choose_senses(COCO, nouns, given | {"tv": "tv.n.02"}) == senses


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"unicorn": "toaster.n.01"}, "--sense: 'unicorn' is no class"),
        (
            {"toaster": "toaster.n.03"},
            r"no sense 'toaster.n.03' for 'toaster'; give one of toaster.n.01 \(a propos",
        ),
        ({"toaster": "toaster.n.00"}, "no sense"),
        ({"toaster": "grill.n.01"}, "no sense 'grill.n.01' for 'toaster'; write it as lemma.n.number"),
        ({"toaster": "toaster"}, "no sense 'toaster'"),
    ],
)
def test_senses_that_do_not_exist(given, words, nouns):
    with pytest.raises(InputError, match=words):
        choose_senses(COCO, nouns, given)


def test_malformed_senses(tmp_path):
    (tmp_path / "senses.txt").write_text("# by hand\ntoaster=toaster.n.02\ncar\n")
    with pytest.raises(InputError, match=r"senses.txt, line 3: 'car' names no sense; write NAME=lemma.n.number"):
        read_senses([str(tmp_path / "senses.txt")])
    with pytest.raises(InputError, match=r"none.txt: cannot be read"):
        read_senses([str(tmp_path / "none.txt")])
    with pytest.raises(InputError, match=r"--sense: '=toaster.n.02' names no sense"):
        read_senses(["=toaster.n.02"])


@pytest.mark.parametrize("inside", ["", "dict", "corpora/wordnet"])
def test_where_the_files_may_lie(inside, tmp_path):
    write_wordnet(tmp_path / inside)
    assert Nouns(tmp_path).lemma("car") == "car"


def test_a_zip_file_as_nltk_has_it(tmp_path):
    write_wordnet(tmp_path / "wordnet")
    with zipfile.ZipFile(tmp_path / "wordnet.zip", "w") as archive:
        for path in (tmp_path / "wordnet").iterdir():
            archive.write(path, f"wordnet/{path.name}")
    for name in ("data.noun", "index.noun", "noun.exc"):
        (tmp_path / "wordnet" / name).unlink()
    for path in tmp_path / "wordnet.zip", tmp_path / "wordnet", tmp_path:
        assert edges(COCO, Nouns(path)) == {("hot dog", "sandwich"), ("donut", "cake")}


def test_a_damaged_zip_file(tmp_path):
    write_wordnet(tmp_path)
    with zipfile.ZipFile(tmp_path / "a.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.write(tmp_path / "data.noun", "data.noun")
    damaged = bytearray((tmp_path / "a.zip").read_bytes())
    damaged[30 + len("data.noun")] = 0xFF  # behind the header: a block of a type that does not exist
    (tmp_path / "a.zip").write_bytes(damaged)
    with pytest.raises(InputError, match=r"data.noun: cannot be read \(.*invalid block type"):
        Nouns(tmp_path / "a.zip")


def test_folders_and_files_that_are_not_wordnets(tmp_path):
    with pytest.raises(InputError, match=r"none: has no data.noun; give the folder of WordNet's data.noun"):
        Nouns(tmp_path / "none")
    write_wordnet(tmp_path)
    whole = (tmp_path / "data.noun").read_bytes()
    (tmp_path / "data.noun").write_bytes(b"\n" + whole)  # as after a change of line ends, all offsets are wrong
    with pytest.raises(InputError, match=r"data.noun: no synset begins at byte \d+"):
        edges(COCO, Nouns(tmp_path))
    (tmp_path / "data.noun").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(InputError, match=r"data.noun: no synset begins at byte \d+"):
        edges([*COCO, "sofa"], Nouns(tmp_path))
    (tmp_path / "index.noun").write_text("car n 2 1 @ 2 0 00000042\n")
    with pytest.raises(InputError, match=r"index.noun: the line of 'car' is malformed"):
        Nouns(tmp_path).senses("car")
    (tmp_path / "index.noun").unlink()
    with pytest.raises(InputError, match=r"index.noun: cannot be read \(No such file or directory\)"):
        Nouns(tmp_path)


def test_no_cycle_is_endless(tmp_path):
    write_wordnet(tmp_path, SYNSETS | {"entity": (3, ["entity"], [("@", "car")])})
    assert edges(["car", "entity"], Nouns(tmp_path)) == {("car", "entity"), ("entity", "car")}


@pytest.mark.skipif(not DEBIAN.exists(), reason="WordNet is not installed: apt install wordnet-base")
def test_the_real_wordnet():
    names = ["person", "toaster", "hot dog", "sandwich", "donut", "cake", "keyboard", "laptop", "bus", "car", "mouse"]
    nouns = Nouns(DEBIAN)
    assert edges(names, nouns) == {("hot dog", "sandwich"), ("donut", "cake")}
    assert edges(names, nouns, relation="is_part_of") == {("keyboard", "laptop")}
    graph = combine(names, [relate_by_wordnet(nouns, choose_senses(names, nouns, {}))])
    assert list(graph.relations) == ["is_kind_of", "has_kind", "is_part_of", "has_part"]
