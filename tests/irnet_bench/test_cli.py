"""The command line of `irnet bench`: which package it says is absent."""

import sys

import pytest

from irnet.cli import main
from irnet_bench import compare
from tests.irnet_bench.made_up import readme_and_results


@pytest.mark.parametrize("words", [["report", "{0}"], ["compare", "{0}", "{0}"]], ids=lambda words: words[0])
def test_a_package_of_the_extra_that_is_absent_is_named(tmp_path, capsys, monkeypatch, words):
    for name in ("pandas", "scipy", "scipy.stats"):
        monkeypatch.setitem(sys.modules, name, None)
    compare._skipped.cache_clear()
    assert main(["bench", *(word.format(readme_and_results(tmp_path)[1]) for word in words)]) == 2
    assert capsys.readouterr().err.endswith('is not installed; pip install "irnet[bench]"\n')


def test_another_package_that_is_absent_is_not_of_the_extra(tmp_path, capsys):
    """What a file of cases needs is its author's affair: the traceback names the line."""
    cases = tmp_path / "cases.py"
    cases.write_text("import no_such_package_of_ours\n")
    with pytest.raises(ModuleNotFoundError, match="no_such_package_of_ours"):
        main(["bench", "gate", "--kind", "counts", "--cases", str(cases)])
