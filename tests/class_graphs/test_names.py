"""Left and right, one and many, by names alone."""

import pytest

from irnet.class_graphs.names import relate_names


def pairs(classes, relation):
    edges = relate_names(classes)[relation]
    assert set(edges.values()) <= {1.0} and all((b, a) in edges for a, b in edges)
    return {(classes[a], classes[b]) for a, b in edges if a < b}


def test_left_and_right():
    classes = ["left arm", "arm", "right arm", "table_left_leg", "table_right_leg", "left foot", "bright_lamp"]
    assert pairs(classes, "left_right") == {("left arm", "right arm"), ("table_left_leg", "table_right_leg")}


@pytest.mark.parametrize(
    ("one", "many"),
    [
        ("car", "cars"),
        ("Car", "cars"),
        ("traffic light", "traffic lights"),
        ("traffic_light", "traffic lights"),
        ("box", "boxes"),
        ("bus", "buses"),
        ("bench", "benches"),
        ("berry", "berries"),
        ("toy", "toys"),
        ("tomato", "tomatoes"),
        ("photo", "photos"),
        ("man", "men"),
        ("fireman", "firemen"),
        ("human", "humans"),
        ("bookshelf", "bookshelves"),
        ("roof", "roofs"),
        ("person", "people"),
        ("foot", "feet"),
        ("knife", "knives"),
        ("glass of wine", "glasses of wine"),
    ],
)
def test_plural(one, many):
    assert pairs([one, "sky", many], "plural") == {(one, many)}


@pytest.mark.parametrize(
    "classes",
    [
        ["car", "cart"],
        ["bus", "buss"],
        ["clas", "class"],
        ["cars", "carss"],
        ["new", "newt"],
        ["box", "fox"],
        ["", "s"],
    ],
)
def test_no_plural(classes):
    assert pairs(classes, "plural") == set()
