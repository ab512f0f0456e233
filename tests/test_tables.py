"""The tables of the documents are those of the measured figures."""

import importlib.util

import pytest

from tests.launch import ROOT


specification = importlib.util.spec_from_file_location("tables", ROOT / "docs" / "tables.py")
tables = importlib.util.module_from_spec(specification)
specification.loader.exec_module(tables)


@pytest.mark.parametrize("name", tables.TABLES)
def test_a_document_has_the_measured_figures(name):
    assert (ROOT / name).read_text() == tables.filled()[ROOT / name]


def test_the_claims_are_explained_as_the_ablation_explains_them():
    claims = (ROOT / "benchmarks" / "claims" / "ablation.md").read_text().strip()
    assert claims in (ROOT / "docs" / "results.md").read_text()


def test_a_table_is_found_by_its_first_line_and_replaced():
    document = "# A\n\n| a | b |\n|---|---|\n| 1 | 2 |\n| 3 | 4 |\n\n| a | c |\n|---|---|\n| 5 | 6 |\n"
    new = tables.table("| a | b |", [["7", "8"]])
    assert (
        tables.fill(document, [new]) == "# A\n\n| a | b |\n|---|---|\n| 7 | 8 |\n\n| a | c |\n|---|---|\n| 5 | 6 |\n"
    )
    with pytest.raises(ValueError, match=r"must have the table with the first line '\| b \|'"):
        tables.fill(document, [tables.table("| b |", [])])


def test_figures_are_written_with_their_standard_errors():
    value = {"mean": 0.25, "standard_error": 0.0625}
    assert tables.figure(value, 2) == "0.25 ± 0.06" and tables.figure(value, 1, True) == "+0.2 ± 0.1"
