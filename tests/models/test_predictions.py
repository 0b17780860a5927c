"""The key of a prediction: its name in files, and its place among the others."""

import itertools

import pytest

from irnet.models.predictions import CONV, FINAL, PredictionKey

ORDER = ["conv", "local 1", "local 2", "local 10", "global 1", "global 2", "final"]


def test_keys_sort_as_a_roll_out_lists_them():
    keys = [PredictionKey.parse(name) for name in ORDER]
    for order in itertools.islice(itertools.permutations(keys), 0, None, 97):
        assert sorted(order) == keys
    assert all(a < b and b > a and a != b for a, b in itertools.combinations(keys, 2))


def test_a_name_is_its_keys():
    assert [str(PredictionKey.parse(name)) for name in ORDER] == ORDER
    assert PredictionKey.parse("local 10") == PredictionKey("local", 10) and PredictionKey("local", 1).iteration == 1
    assert (str(CONV), str(FINAL)) == ("conv", "final")
    assert {PredictionKey("local", 2): 1}[PredictionKey.parse("local 2")] == 1


@pytest.mark.parametrize("name", ["", "other", "other 1", "local 0", "local 01", "local x", "local  1", "local 1 "])
def test_other_names_are_refused(name):
    with pytest.raises(ValueError, match="is no prediction's name"):
        PredictionKey.parse(name)
