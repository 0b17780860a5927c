"""Files of word vectors in every form, names of several words, malformed lines, and similar names."""

import gzip
import tracemalloc

import numpy as np
import pytest

from irnet.class_graphs import word_vectors
from irnet.class_graphs.word_vectors import name_vectors, read_rows, relate_by_similarity
from irnet.errors import InputError

ROWS = {"the": [0, 0, 1], "hot": [1, 0.5, 0], "dog": [3, -0.5, 2], "car": [1, 2, 3], "</s>": [9, 9, 9]}
NAMES = ["hot dog", "Car", "hot-rod", "unicorn"]


def text(rows=ROWS, header=False):
    lines = [f"{word} {' '.join(map(str, row))}" for word, row in rows.items()]
    return "\n".join([f"{len(rows)} 3"] * header + lines) + "\n"


def binary(end=b"\n", count=5):
    rows = [word.encode() + b" " + np.array(row, "<f4").tobytes() + end for word, row in ROWS.items()]
    return f"{count} 3\n".encode() + b"".join(rows)


FORMS = {
    "glove.txt": text().encode(),
    "glove without a last line end": text().rstrip().encode(),
    "windows.txt": text().replace("\n", "\r\n").encode(),
    "word2vec.txt": text(header=True).encode(),
    "word2vec.bin": binary(),
    "gensim.bin": binary(b""),
    "tabs.txt": text().replace(" ", "\t").encode(),
    "a tab after the word.txt": text(header=True).replace(" ", "\t", 1).encode(),
    "several blanks.txt": text().replace(" ", "  ").encode(),
    "two blanks after the word.txt": text({f"{word} ": row for word, row in ROWS.items()}).encode(),
    "glove.txt.gz": gzip.compress(text().encode()),
    "word2vec.txt.gz": gzip.compress(text(header=True).encode()),
    "word2vec.bin.gz": gzip.compress(binary()),
}


@pytest.mark.parametrize("chunk", [5, 1 << 20])
@pytest.mark.parametrize("form", FORMS)
def test_forms(form, chunk, tmp_path, monkeypatch):
    monkeypatch.setattr(word_vectors, "CHUNK", chunk)
    path = tmp_path / form
    path.write_bytes(FORMS[form])
    embeddings = name_vectors(path, NAMES)
    assert embeddings.vectors.dtype == np.float32
    assert embeddings.vectors.tolist() == [[2, 0, 1], [1, 2, 3], [1, 0.5, 0], [0, 0, 0]]
    assert embeddings.missing == {"hot-rod": ["rod"], "unicorn": ["unicorn"]} and embeddings.unknown == ["unicorn"]
    assert embeddings.report() == (
        "2 words of 2 names have no vector: rod, unicorn; 1 names have none at all and get zeros: unicorn"
    )


def test_a_word_as_it_is_written_comes_before_lower_case(tmp_path):
    (tmp_path / "a.txt").write_text("china 1 0\nChina 0 1\n")
    assert name_vectors(tmp_path / "a.txt", ["China", "china", "CHINA"]).vectors.tolist() == [[0, 1], [1, 0], [1, 0]]


def test_names_that_are_synsets(tmp_path):
    (tmp_path / "a.txt").write_text("hot 1 0\ndog 0 1\nn 9 9\n01 9 9\n")
    assert name_vectors(tmp_path / "a.txt", ["hot_dog.n.01", "dog.n.01"]).vectors.tolist() == [[0.5, 0.5], [0, 1]]


def test_of_a_word_that_occurs_twice_the_first_counts(tmp_path):
    (tmp_path / "a.txt").write_text("car 1 0\ndog 0 1\ncar 5 5\n")
    (tmp_path / "a.bin").write_bytes(binary().replace(b"hot ", b"car "))
    assert read_rows(tmp_path / "a.txt", {"car"})["car"].tolist() == [1, 0]
    assert read_rows(tmp_path / "a.bin", {"car"})["car"].tolist() == ROWS["hot"]


def test_words_with_spaces_and_other_scripts(tmp_path):
    (tmp_path / "a.txt").write_text("car 1 0\n. . . 2 3\nat name 4 5\nящик 6 7\n", encoding="utf-8")
    rows = read_rows(tmp_path / "a.txt", {". . .", "ящик", "at"})
    assert {word: row.tolist() for word, row in rows.items()} == {". . .": [2, 3], "ящик": [6, 7]}
    (tmp_path / "b.txt").write_text("car\t1\t0\nhot dog x\t2\t3\n")
    assert read_rows(tmp_path / "b.txt", {"hot dog x"})["hot dog x"].tolist() == [2, 3]


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "line 1 is no word with its numbers"),
        (b"car\n", "line 1 is no word with its numbers"),
        (b"the 1 2 3\ndog 1 2\n", "line 2 has 2 numbers, not 3"),
        (b"the\t1\t2\t3\ndog\t1\t2\n", "line 2 has 2 numbers, not 3"),
        (b"the 1 2 3\n\ndog\n", "line 3 has 0 numbers, not 3"),
        (b"the 1 2 3\ncar 1 x 3\n", "line 2: could not convert string to float: b'x'"),
        (b"the 1 2 3\ncar 1 nan 3\n", "line 2 has a number that is not finite"),
        (b"the 1 2 3\ncar 1 1e39 3\n", "line 2 has a number that is not finite"),
        (b"2 3\nthe 1 2 3\ncar 1 2\n", "line 3 has 2 numbers, not 3"),
        (b"3 3\nthe 1 2 3\ncar 1 2 3\n", "ends at line 3; its header names 3 words"),
        (b"2 3\nthe 1 2\n", "line 2 has 2 numbers, not 3"),
        (b"0 3\n", "its header names 0 words of 3 numbers"),
        (b"3 0\n", "its header names 3 words of 0 numbers"),
        (binary()[:-3], "word 5 of 5 is cut off"),
        (binary(count=6), "word 6 of 6 is cut off"),
        (
            binary().replace(np.float32(2).tobytes(), b"\x00\x00\xc0\x7f"),
            r"word \d, '\w+', has a number that is not finite",
        ),
        (gzip.compress(text().encode())[:-12], "cannot be read"),
        (text({"the": [1, 2]}).encode(), "holds no word of the 4 names"),
        (b"a" * (1 << 20), "line 1 has no end"),
    ],
    ids=lambda value: value if isinstance(value, str) else "content",  # a compressed file holds the time
)
def test_malformed_files(content, words, tmp_path):
    path = tmp_path / "vectors"
    path.write_bytes(content)
    with pytest.raises(InputError, match=words) as caught:
        name_vectors(path, NAMES)
    assert caught.value.where == str(path)


def test_a_large_file_is_not_held(tmp_path):
    path = tmp_path / "large.txt"
    path.write_text(
        "".join(f"word{i} {'0.125 ' * 300}".rstrip() + "\n" for i in range(5000)) + "car " + "1 " * 299 + "2\n"
    )
    assert path.stat().st_size > 9_000_000
    tracemalloc.start()
    rows = read_rows(path, {"car"})
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert rows["car"].sum() == 301 and peak < 500_000


def test_similar_names():
    vectors = np.array([[1, 0], [2, 0.2], [0, 1], [-1, 0], [0, 0]], dtype=np.float32)
    edges = relate_by_similarity(vectors, neighbours=1)["similarity"]
    close, far = 2 / np.hypot(2, 0.2), 0.2 / np.hypot(2, 0.2)
    assert edges == {(1, 0): pytest.approx(close), (0, 1): pytest.approx(close), (1, 2): pytest.approx(far)}
    more = relate_by_similarity(vectors, neighbours=3)["similarity"]
    assert set(more) == {(1, 0), (0, 1), (2, 1), (1, 2)}  # a cosine of 0 or below is no similarity
