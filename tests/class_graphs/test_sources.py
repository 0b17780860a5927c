"""Several sources in one class graph, and the commands `irnet graph build` and `irnet graph show`."""

import json
import shutil
from collections import Counter

import pytest
import torch
from PIL import Image

from irnet.class_graphs.combine import combine, shares
from irnet.class_graphs.format import load_class_graph, read_class_graph, save_class_graph
from irnet.class_graphs.sources import read_classes, read_images
from irnet.class_graphs.statistics import isolated, neighbours, statistics
from irnet.cli import main
from irnet.errors import InputError
from tests.class_graphs.tools import IMAGES, SAMPLE, relationship, thing, write_2021, write_wordnet
from tests.data import formats

CLASSES = ["car", "wheel", "cars", "man", "shirt", "street", "hot dog", "sandwich", "left_arm", "right_arm"]


def run(*words):
    assert main([str(word) for word in words]) == 0


@pytest.fixture
def sources(tmp_path):
    """A small one of every source that reads files."""
    write_wordnet(tmp_path / "wordnet")
    write_2021(tmp_path / "ade/ADE_train_1.json", thing(0, "car"), *(thing(i, "wheel", whole=0) for i in (4, 5)))
    (tmp_path / "relationships.json").write_text(json.dumps(IMAGES))
    (tmp_path / "glove.txt").write_text("car 1 0\ncars 1 0.1\nman 0 1\nhot 0.2 1\n")
    (tmp_path / "classes.txt").write_text("\n".join(CLASSES))
    return tmp_path


def test_all_sources_combine(sources, capsys):
    words = ["ade20k=ade", "visual-genome=relationships.json", "wordnet=wordnet", "names", "word-vectors=glove.txt"]
    parts = [part for word in words for part in ("--from", word.replace("=", f"={sources}/"))]
    path = sources / "graph.json"
    run("graph", "build", *parts, "--classes", sources / "classes.txt", "--neighbours", "1", "--output", path)
    graph = load_class_graph(path, CLASSES)
    assert {name: len(src) for name, (src, _, _) in graph.relations.items()} == {
        "is_kind_of": 1,
        "has_kind": 1,
        "is_part_of": 2,
        "has_part": 2,
        "on": 2,
        "wearing": 1,
        "parked on": 1,
        "plural": 2,
        "left_right": 2,
        "similarity": 4,
    }
    src, dst, weight = graph.relations["is_part_of"]
    # Both ADE20K and WordNet know of the wheel of a car, and only WordNet takes cars for the same.
    assert [(CLASSES[a], CLASSES[b]) for a, b in zip(src, dst, strict=True)] == [("wheel", "car"), ("wheel", "cars")]
    assert weight.tolist() == [1, 1]
    out = capsys.readouterr().out
    assert "is_kind_of: 1 edges\n  hot dog -> sandwich  1.000\n" in out and out.endswith(f"{path}\n")


def test_senses_by_hand(sources, capsys):
    words = ["graph", "build", "--from", f"wordnet={sources}/wordnet", "--classes", sources / "classes.txt"]
    run(*words, "--write-senses", sources / "senses.txt", "--sense", "hot dog=none")
    assert "hot dog -> sandwich" not in capsys.readouterr().out
    text = (sources / "senses.txt").read_text()
    assert "hot dog=none\n" in text and "car=car.n.01  # a car\n" in text
    (sources / "senses.txt").write_text(text.replace("hot dog=none", "hot dog=hot_dog.n.02"))
    run(*words, "--sense", sources / "senses.txt")
    assert "hot dog -> sandwich" in capsys.readouterr().out


def test_sources_of_a_data_set(scenes_root, tmp_path, capsys):
    run("graph", "build", "--data-root", scenes_root, "--from", "annotations", "--from", "names", "--show", "0")
    out = capsys.readouterr().out
    assert "same_supercategory: " in out and "co_occurs: " in out
    (tmp_path / "a.txt").write_text("\n".join(CLASSES))
    run("graph", "build", "--classes", tmp_path / "a.txt", "--from", "names", "--output", tmp_path / "graph.json")
    names = read_class_graph(tmp_path / "graph.json")
    assert list(names.relations) == ["plural", "left_right"] and names.classes == CLASSES


@pytest.mark.skipif(not SAMPLE.exists(), reason="../shared/data/ade20k_2021_sample is absent")
def test_a_data_set_gives_its_training_images_alone(tmp_path, capsys):
    shutil.copytree(SAMPLE, tmp_path / "ade")  # where the loader may write its cache
    words = ["graph", "build", "--data", "ade20k", "--data-root", tmp_path / "ade", "data.min_count=1"]
    run(*words, "--from", "ade20k", "--show", "40")
    assert "wheel -> car  0.286\n" in capsys.readouterr().out  # two of the seven parts of cars in the first image
    run(*words, "--from", f"ade20k={tmp_path / 'ade'}", "--show", "40")
    assert "wheel -> car  0.250\n" in capsys.readouterr().out  # and a headlight in the second one


def test_ade20k_leaves_out_a_held_out_image_of_the_same_name(tmp_path, capsys):
    for folder, part in ("training", "wheel"), ("validation", "door"):
        objects = [thing(0, "car"), thing(1, part, whole=0), thing(2, "wheel"), thing(3, "door")]
        objects = [row | {"polygon": {"x": [1, 9], "y": [1, 9]}, "occluded": "no", "crop": "0"} for row in objects]
        path = tmp_path / "images" / folder / "1.json"
        path.parent.mkdir(parents=True)
        path.write_text(json.dumps({"annotation": {"imsize": [30, 40, 3], "object": objects}}))
        Image.new("RGB", (40, 30)).save(path.with_suffix(".jpg"))
    run("graph", "build", "--data", "ade20k", "--data-root", tmp_path, "data.min_count=1", "--from", "ade20k")
    out = capsys.readouterr().out
    assert "wheel -> car  1.000\n" in out and "door -> car" not in out


def test_visual_genome_gives_its_training_images_alone(tmp_path, capsys):
    formats.vg(tmp_path)
    ends = [{"name": "x", "synsets": [f"{colour}.n.01"]} for colour in ("red", "blue", "green")]
    images = [
        {"image_id": 1, "relationships": [relationship("on", ends[0], ends[1])]},
        {"image_id": 7, "relationships": [relationship("on", ends[2], ends[1])]},  # of the held-out part
    ]
    (tmp_path / "relationships.json").write_text(json.dumps(images))
    words = ["graph", "build", "--data", "vg", "--data-root", tmp_path, "data.min_count=1"]
    run(*words, "--from", "visual-genome")
    assert capsys.readouterr().out == "on: 1 edges\n  red.n.01 -> blue.n.01  1.000\n"
    run(*words, "--from", f"visual-genome={tmp_path}")
    assert "on: 2 edges\n" in capsys.readouterr().out


def test_combining():
    merged = combine(
        ["a", "b", "c"],
        [
            {"x": {(2, 0): 0.75, (0, 1): 0.25, (1, 1): 1.0}, "none": {}},
            {"y": {(0, 2): 1.0}, "x": {(2, 0): 0.5, (0, 1): 0.5}},
        ],
    )
    assert list(merged.relations) == ["x", "y"]
    assert [part.tolist() for part in merged.relations["x"]] == [[0, 2], [1, 0], [0.5, 0.75]]
    assert [part.dtype for part in merged.relations["y"]] == [torch.int64, torch.int64, torch.float32]
    with pytest.raises(InputError, match="class graph: the sources tie no two of the 1 classes"):
        combine(["a"], [{"x": {(0, 0): 1.0}}])

    assert shares(Counter({(0, 2): 3, (1, 2): 1, (2, 1): 2}), 2) == {(0, 2): 0.75, (2, 1): 1.0}


@pytest.mark.parametrize(
    ("words", "trouble"),
    [
        (["--from", "names"], "--data-root"),
        (["--classes", "classes.txt"], "--classes: no source is named; give one by --from"),
        (["--classes", "classes.txt", "--from", "wikipedia"], "--from: no source is named 'wikipedia'; give one of"),
        (["--classes", "classes.txt", "--from", "annotations"], "takes the training annotations of a data set"),
        (["--classes", "classes.txt", "--from", "names=x"], "--from names: reads no file"),
        (["--classes", "classes.txt", "--from", "ade20k"], "--from ade20k: names no path; give the folder"),
        (["--classes", "classes.txt", "--from", "visual-genome"], "give relationships.json"),
        (["--classes", "classes.txt", "--from", "word-vectors"], "give a file of word vectors"),
        (["--classes", "none.txt", "--from", "names"], "none.txt: cannot be read (No such file or directory)"),
        (["--classes", "few.txt", "--from", "names"], "the sources tie no two of the 2 classes"),
        (["--classes", "few.txt", "--from", "names", "--predicates", "0"], "--predicates: 0 is out of range"),
        (["--classes", "few.txt", "--from", "names", "--min-count", "0"], "--min-count: 0 is out of range"),
        (["--classes", "few.txt", "--from", "names", "--neighbours", "0"], "--neighbours: 0 is out of range"),
        (["--classes", "few.txt", "--from", "ade20k=ade", "--images", "empty.txt"], "empty.txt: names no image"),
        (["--classes", "few.txt", "--from", "names", "--images", "few.txt"], "--images: counts for ade20k and"),
        (["--classes", "few.txt", "--from", "names", "--sense", "car=car.n.01"], "--sense: counts for wordnet alone"),
        (["--classes", "few.txt", "--from", "names", "--predicates", "3"], "--predicates: counts for visual-genome"),
        (["--data-root", "x", "--neighbours", "3"], "--neighbours: counts for word-vectors alone; add a --from"),
    ],
)
def test_what_cannot_be_built(words, trouble, sources, refused, monkeypatch):
    monkeypatch.chdir(sources)
    (sources / "few.txt").write_text("car\nsky\n")
    (sources / "empty.txt").write_text("\n")
    refused(["graph", "build", *words], trouble)


@pytest.mark.parametrize(
    "text",
    [
        "car\n\n hot dog \nsky",
        '["car", "hot dog", "sky"]',
        '{"classes": ["car", "hot dog", "sky"], "relations": []}',
        '{"categories": [{"id": 3, "name": "sky"}, {"id": 1, "name": "car"}, {"id": 2, "name": "hot dog"}]}',
        '{"categories": [{"id": "10", "name": "sky"}, {"id": "9", "name": "hot dog"}, {"id": 1, "name": "car"}]}',
    ],
)
def test_lists_of_classes(text, tmp_path):
    (tmp_path / "classes").write_text("\ufeff" + text, encoding="utf-8")
    assert read_classes(tmp_path / "classes") == ["car", "hot dog", "sky"]


@pytest.mark.parametrize(
    ("text", "trouble"),
    [
        ("car\ncar\n", "has the name 'car' twice"),
        ("", "has no name"),
        ("[1, 2]", "its classes are no list of names"),
        ('{"classes": "car"}', "its classes are no list of names"),
        ("[", "holds no names of classes"),
        ('{"names": []}', "holds no names of classes"),
        ('{"categories": [{"name": "car"}]}', r"category 0 \(of 1\) has no id"),
        ('{"categories": [3]}', "holds no names of classes"),
        ('{"categories": [{"id": 1}]}', "holds no names of classes"),
    ],
)
def test_lists_that_are_none(text, trouble, tmp_path):
    (tmp_path / "classes").write_text(text)
    with pytest.raises(InputError, match=trouble):
        read_classes(tmp_path / "classes")


def test_lists_of_images(tmp_path):
    (tmp_path / "images").write_text("images/training/c/ADE_train_00005777.jpg\n\n2315\n")
    assert read_images(tmp_path / "images") == {"ADE_train_00005777", "2315"}


# ------------------------------------------------------------------------------------------------------------- show


@pytest.fixture
def graph_file(tmp_path):
    relations = [
        {"name": "is_part_of", "edges": [[0, 1, 0.25], [2, 1, 0.75], [0, 3, 1]]},
        {"name": "$on$", "edges": [[1, 4, 0.5]]},
        {"name": "none", "edges": []},
    ]
    (tmp_path / "graph.json").write_text(
        json.dumps({"classes": ["wheel", "Sports_Car", "door", "van", "街 $x$", "rug"], "relations": relations})
    )
    return tmp_path / "graph.json"


def test_statistics(graph_file):
    graph = read_class_graph(graph_file)
    first, second, third = statistics(graph)
    assert (first.name, first.edges, first.sources, first.destinations, first.most) == ("is_part_of", 3, 2, 2, 2)
    assert first.weights == (0.25, 0.75, 1.0) and (second.edges, second.most) == (1, 1)
    assert (third.edges, third.sources, third.destinations, third.most, third.weights) == (0, 0, 0, 0, None)
    assert isolated(graph) == ["rug"]
    assert [(n.relation, n.name, n.weight, n.outgoing) for n in neighbours(graph, "sports car")] == [
        ("is_part_of", "door", 0.75, False),
        ("is_part_of", "wheel", 0.25, False),
        ("$on$", "街 $x$", 0.5, True),
    ]


def test_show(graph_file, capsys):
    run("graph", "show", graph_file)
    out = capsys.readouterr().out
    assert out.startswith(f"{graph_file}: 6 classes, 1 of them without an edge\n") and "Sports_Car" not in out
    run("graph", "show", graph_file, "sports car", "--show", "1", "--output", graph_file.with_name("new") / "car.png")
    out = capsys.readouterr().out
    assert "\nSports_Car:\n  ... is_part_of Sports_Car\n    door  0.750\n    and 1 more\n  Sports_Car $on$ ...\n" in out
    assert Image.open(graph_file.with_name("new") / "car.png").size[0] > 300
    run("graph", "show", graph_file, "rug", "--output", graph_file.with_name("rug.svg"))
    assert "\nrug: no edge\n" in capsys.readouterr().out and "<svg" in graph_file.with_name("rug.svg").read_text()


def test_what_cannot_be_shown(graph_file, refused, tmp_path):
    refused(["graph", "show", tmp_path / "none.json"], "none.json: cannot be read")
    refused(["graph", "show", graph_file, "whel"], "CLASS: no class is named 'whel'; give one of wheel")
    refused(["graph", "show", graph_file, "xyz"], "give one of its 6 classes, such as wheel")
    refused(["graph", "show", graph_file, "--output", "x.png"], "--output x.png: draws the neighbours of a class")
    refused(["graph", "show", graph_file, "rug", "--output", "x.doc"], "--output x.doc: is no picture's name")
    refused(["graph", "show", graph_file, "rug", "--output", graph_file / "x.png"], "cannot be written")
    refused(["graph", "show", graph_file, "--show", "0"], "--show: 0 is out of range")


@pytest.mark.parametrize(("classes", "trouble"), [(["a", "a"], "'a', which stands twice"), (["a", 1], "'1', no text")])
def test_a_graph_of_no_names(classes, trouble, tmp_path):
    data = {"classes": classes, "relations": [{"name": "on", "edges": [[0, 1, 1]]}]}
    (tmp_path / "graph.json").write_text(json.dumps(data))
    with pytest.raises(InputError, match=f"class 1 is {trouble}; give every class a name of its own"):
        read_class_graph(tmp_path / "graph.json")


def test_what_is_read_without_its_classes_is_what_was_written(graph_file, tmp_path):
    save_class_graph(read_class_graph(graph_file), tmp_path / "again.json")
    assert json.loads((tmp_path / "again.json").read_text()) == json.loads(graph_file.read_text())
