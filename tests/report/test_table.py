"""The comparison of variants as a table: every number, in both forms."""

from irnet.report.page import page
from irnet.report.table import comparison, legend, table_text
from tests.report.made_up import FACTS, VARIANTS, made_up_runs


def test_tables_hold_every_number_and_agree():
    runs = made_up_runs()
    table = comparison(runs, FACTS)
    assert [c for c, _ in table.columns[:7]] == [
        "class AP", "class accuracy", "instance accuracy", "plain", "near", "far", "presence"
    ]  # fmt: skip
    assert [r.name for r in table.rows] == [*VARIANTS, *(f"{v} - conv" for v in VARIANTS[1:]), "box-only bound"]
    assert table.rows[3].cells[2] == "76.3" and table.rows[6].cells[2] == "+30.0" and table.rows[7].cells[2] == "60.8"
    assert table.rows[6].cells[3] == "-3.0" and table.rows[7].cells[5:] == ["", "", "", ""]
    text, html = table_text(runs, FACTS), page("t", runs, [], FACTS)
    for row in table.rows:
        for cell in filter(None, row.cells):
            assert cell in text and cell.replace("-", "&minus;") in html
    rows, told = text.rpartition("---\n")[::2]
    (width,) = {len(line) for line in rows.splitlines()[:-1]}  # aligned
    assert width <= 100 and all(len(line) <= 100 for line in told.splitlines())
    assert " ".join(told.split()) == legend(table)
    assert "2 min 02 s" in text and "1.23 M" in text
