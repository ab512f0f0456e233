import math

import pytest
import torch
from PIL import Image

from training.metrics import figures
from training.metrics.baselines import measure, to_tensor


def summarize(errors, **more):
    """Summarize grey frames with given errors: for each row, one error per clip."""
    plain = [Image.new("RGB", (24, 32), (100, 100, 100))] * 2
    values = [
        {row: measure(to_tensor(plain) + error[clip], plain, None) | more for row, error in errors.items()}
        for clip in range(2)
    ]
    return figures.summarize(values)


def test_figures_are_means_over_clips_and_differences_are_paired():
    errors = {"model": (0.02, 0.1), "copy of the reference": (0.04, 0.2)}
    found = summarize(errors)
    model = [-20 * math.log10(error) for error in errors["model"]]
    psnr = found["rows"]["model"]["psnr"]
    assert psnr["mean"] == pytest.approx(sum(model) / 2, abs=1e-3) and psnr["n"] == 2
    assert psnr["standard_error"] == pytest.approx(abs(model[0] - model[1]) / 2, abs=1e-3)
    assert found["rows"]["model"]["cloth_psnr"] == {"mean": None, "standard_error": None, "n": 0}
    difference = found["model_minus_row"]["copy of the reference"]["psnr"]
    assert difference["mean"] == pytest.approx(20 * math.log10(2), abs=1e-3)
    assert difference["standard_error"] == pytest.approx(0, abs=1e-3)
    assert set(found["rows"]) == {"model", "copy of the reference"}


def test_rows_and_metrics_that_a_clip_lacks_are_left_out():
    values = [
        {"model": {"psnr": 1.0, "l1": 2.0}, "pose dropped": {"psnr": 1.0}},
        {"model": {"psnr": 3.0}},
    ]
    found = figures.summarize(values)
    assert {row: list(by_metric) for row, by_metric in found["rows"].items()} == {"model": ["psnr"]}
    assert found["model_minus_row"] == {}


def test_tables_hold_the_figures_that_exist():
    found = summarize({"model": (0.02, 0.1), "copy of the reference": (0.04, 0.2)})
    rows = found["rows"]
    rows["model"]["temporal_error"] = {"mean": 0.01234, "standard_error": None, "n": 1}
    table = figures.markdown_table(rows)
    psnr = rows["model"]["psnr"]
    assert f"| model | {psnr['mean']:.2f} ± {psnr['standard_error']:.2f} |" in table
    assert table.splitlines()[0] == "| | psnr | ssim | l1 | silhouette iou |", "nobody is there"
    assert {line.count("|") for line in table.splitlines()} == {6}
    tables = figures.markdown_tables(rows, {"lpips": "left out: no network"})
    assert "| | temporal error |\n|---|---|\n| model | 0.0123 |\n\n- lpips: left out: no network\n" in tables
    assert "unseen" not in tables and figures.markdown_table(rows, ["hair_l1"]) == ""


def test_every_metric_is_in_one_table():
    listed = [name for names in figures.TABLES.values() for name in names]
    assert sorted(listed) == sorted(figures.METRICS)


def test_set_distances_compare_each_row_with_its_own_truth():
    rows = summarize({"model": (0.02, 0.1), "another subject's photo, against that subject": (0.04, 0.2)})["rows"]
    rows["pose dropped"] = {}
    features = {
        "own": torch.tensor([[0.0], [2.0]]),
        "other_photo": torch.tensor([[0.0], [2.0]]),
        "true own": torch.tensor([[0.0], [4.0]]),
        "true other": torch.tensor([[3.0], [5.0]]),
    }
    figures.add_set_distances(rows, {"fid": features})
    assert rows["model"]["fid"] == {"mean": pytest.approx(3), "standard_error": None, "n": 2}
    assert rows["another subject's photo, against that subject"]["fid"]["mean"] == pytest.approx(9)
    assert rows["pose dropped"] == {}
    assert "| model | 3.00 |" in figures.markdown_table(rows, ["fid"])


def test_cells_and_notes_neither_break_a_table_nor_add_markup():
    rows = {"a|b\n<img> [x](y) `c`": {"psnr": {"mean": 1.0, "standard_error": None, "n": 1}}}
    tables = figures.markdown_tables(rows, {"lpips": "x\n| [y](z)"})
    *_, row, note = [text for text in tables.splitlines() if text]
    assert row == r"| a\|b &lt;img&gt; \[x\](y) \`c\` | 1.00 |" and note == r"- lpips: x \| \[y\](z)"
