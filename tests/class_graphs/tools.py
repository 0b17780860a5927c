"""Small sources of class graphs for several tests: a WordNet of a few words, annotations of ADE20K, relationships."""

import json
from pathlib import Path

SAMPLE = Path(__file__).resolve().parents[3] / "shared/data/ade20k_2021_sample"

# By key: lexicographer file, words, pointers. Sixteen words are "10" in hexadecimal.
SYNSETS = {
    "entity": (3, ["entity"], []),
    "person": (3, ["person"], [("@", "entity")]),
    "proposer": (18, ["toaster", "wassailer"], [("@", "person")]),
    "toaster": (6, ["toaster"], [("@", "entity")]),
    "soap": (6, ["cake", "bar"], [("@", "entity")]),
    "cake": (13, ["cake"], [("@", "entity")]),
    "friedcake": (13, ["friedcake"], [("@", "cake")]),
    "doughnut": (13, ["doughnut", "donut"], [("@", "friedcake")]),
    "daredevil": (18, ["hotdog", "hot_dog"], [("@", "person")]),
    "hot dog": (13, ["hotdog", "hot_dog"], [("@", "sandwich")]),
    "sandwich": (13, ["sandwich"], [("@", "entity")]),
    "broadcasting": (10, ["tv"], [("@", "entity")]),
    "receiver": (6, ["tv"], [("@", "entity")]),
    "wheel": (6, ["wheel"], [("@", "entity"), ("#p", "wheeled")]),
    "wheeled": (6, ["wheeled_vehicle"], [("@", "entity"), ("%p", "wheel"), ("+", "roll")]),
    "car": (6, ["car", "auto"], [("@", "wheeled")]),
    "train car": (6, ["car", "railcar"], [("@", "wheeled")]),
    "man": (18, ["man"], [("@", "person")]),
    "chessman": (6, ["man"], [("@", "entity")]),
    "many": (6, ["sixteen", *(f"word_{i}" for i in range(15))], [("@", "car")]),
    "sofa": (6, ["sofa", "couch"], [("@", "entity")]),
}
# By lemma: keys in the order of frequency, and how many of them were seen in tagged text.
INDEX = {
    "entity": (["entity"], 1),
    "person": (["person"], 1),
    "toaster": (["proposer", "toaster"], 0),
    "cake": (["soap", "cake"], 1),
    "donut": (["doughnut"], 0),
    "hot_dog": (["daredevil", "hot dog"], 0),
    "sandwich": (["sandwich"], 1),
    "tv": (["broadcasting", "receiver"], 2),
    "wheel": (["wheel"], 1),
    "wheeled_vehicle": (["wheeled"], 0),
    "car": (["car", "train car"], 2),
    "man": (["man", "chessman"], 1),
    "sixteen": (["many"], 0),
    "sofa": (["sofa"], 0),
    "couch": (["sofa"], 0),
    "wineglass": (["soap"], 0),
}
LICENCE = "  1 This software and database is being provided to you.  \n"


def write_wordnet(folder, synsets=None):
    """The files of a WordNet of a few words; gives the offset of every synset."""
    synsets = synsets or SYNSETS

    def line(key, offsets):
        file, words, pointers = synsets[key]
        named = " ".join(f"{word} 0" for word in words)
        targets = "".join(
            f" {symbol} {offsets.get(target, 0):08d} {'v' if target == 'roll' else 'n'} 0000"
            for symbol, target in pointers
        )
        counted = f"{len(words):02x} {named} {len(pointers):03d}{targets}"
        return f"{offsets.get(key, 0):08d} {file:02d} n {counted} | a {key}  \n"

    offsets, at = {}, len(LICENCE)
    for key in synsets:
        offsets[key], at = at, at + len(line(key, {}))
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "data.noun").write_text(LICENCE + "".join(line(key, offsets) for key in synsets))
    rows = [
        f"{lemma} n {len(keys)} 2 @ ~ {len(keys)} {tagged} {' '.join(f'{offsets[key]:08d}' for key in keys)}  \n"
        for lemma, (keys, tagged) in INDEX.items()
    ]
    (folder / "index.noun").write_text(LICENCE + "".join(rows))
    (folder / "noun.exc").write_text("people person\nmen man\n")
    return offsets


def thing(number, raw, name=None, hypernyms=(), whole=None):
    name = name or raw
    parts = {"hasparts": [], "ispartof": [] if whole is None else whole, "part_level": int(whole is not None)}
    return {"id": number, "raw_name": raw, "name": name, "hypernym": list(hypernyms), "parts": parts}


def write_2021(path, *objects, encoding="utf-8"):
    path.parent.mkdir(parents=True, exist_ok=True)
    data = {"annotation": {"object": list(objects)}}
    path.write_bytes(json.dumps(data, ensure_ascii=False).encode(encoding))


def relationship(predicate, subject, target, synsets=("along.r.01",)):
    ends = [end if isinstance(end, dict) else {"name": end, "object_id": 1} for end in (subject, target)]
    return {"predicate": predicate, "subject": ends[0], "object": ends[1], "synsets": list(synsets)}


IMAGES = [
    {
        "image_id": 1,
        "relationships": [
            relationship("ON", "car", {"names": ["street"], "merged_object_ids": [5], "object_id": 2}),
            relationship("on the", "Man", "street"),
            relationship("parked on", "car", "street"),
            relationship("WEARING", "man", "shirt", ["wear.v.01"]),
        ],
    },
    {
        "image_id": 2,
        "relationships": [
            relationship("wears", {"names": ["guy", "man"]}, "shirt ", ["wear.v.01"]),
            relationship("is wearing a", "man", "shirt", []),
            relationship("wearing", "man", "shirt"),
            relationship("on", "car", "street"),
            relationship("ON", {"name": "pine", "synsets": ["tree.n.01"]}, "street"),
            relationship("on", "car", "moon"),
            relationship("next to", "car", "car"),
            relationship("", "car", "man"),
        ],
    },
]
