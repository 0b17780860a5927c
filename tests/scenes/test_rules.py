"""The clue that a page shows is the object that the generator put there to decide the class."""

import pytest

from irnet.scenes import generator, layout
from irnet.scenes.layout import KINDS, LOOKALIKES
from irnet.scenes.rules import RULES, clue

DECIDES = {"flower": "sun", "ball": "theme"}  # role of an object -> role of what decides its class


def made(number: int, monkeypatch) -> tuple[dict, list]:
    """The objects of a pair of twins by role, as the generator keeps them, and in the order of the annotations."""
    real, kept = layout.make_slots, []

    def make_slots(*arguments):
        kept.append(real(*arguments))
        return kept[-1]

    monkeypatch.setattr(layout, "make_slots", make_slots)
    _, objects = generator._make_pair(generator.World(), [3, number])
    monkeypatch.undo()
    return kept[-1], objects


def test_the_clue_is_what_the_generator_put_there(monkeypatch):
    seen = set()
    for number in range(25):
        slots, objects = made(number, monkeypatch)
        for twin in range(2):
            names, boxes = [o.classes[twin] for o in objects], [o.boxes[twin] for o in objects]
            deciding = {id(egg): [partner] for egg, partner in zip(slots["egg"], slots["partner"], strict=True)}
            for role, other in DECIDES.items():
                deciding |= {id(slot): slots[other] for slot in slots[role]}
            for region, slot in enumerate(objects):
                expected = {other.boxes[twin] for other in deciding.get(id(slot), [])}
                assert {boxes[i] for i in clue(names, boxes, region)} == expected
                seen.add((slot.kind, len(expected)))
    assert seen == {("plain", 0), ("near", 1), ("far", 1), ("presence", 1), ("presence", 2)}


def test_the_clue_of_an_egg_is_the_nearest_and_not_the_first():
    names = ["turtle", "hen_egg", "hen", "sun"]
    boxes = [(0, 0, 10, 10), (90, 0, 100, 10), (60, 0, 70, 10), (95, 0, 99, 9)]
    assert clue(names, boxes, 1) == [2]


@pytest.mark.parametrize("kind", KINDS)
def test_the_rule_of_every_kind_names_its_classes(kind):
    assert list(RULES) == list(KINDS)
    for name in LOOKALIKES[KINDS.index(kind)]:
        first, last = name.split("_")
        assert f"{first} {last}" in RULES[kind] or f"{first}'s" in RULES[kind]
