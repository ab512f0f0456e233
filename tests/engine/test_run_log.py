"""The log of a run whose file was edited or damaged."""

import json
import os

import pytest

from training.engine.run_log import append_log, read_figures, read_log, start_log


GOOD = '{"step": 1, "loss": 0.5}'
BAD_LINES = {
    "5": "no object with a whole number as `step`",
    "null": "no object with a whole number as `step`",
    "[1]": "no object with a whole number as `step`",
    '{"loss": 1.0}': "no object with a whole number as `step`",
    '{"step": "1"}': "no object with a whole number as `step`",
    '{"step": true}': "no object with a whole number as `step`",
    '{"step": 1, "loss": "low"}': "whose `loss` is no number",
    '{"step": 1, "validation/loss": null}': "whose `validation/loss` is no number",
    '{"st': "cut short or is no JSON",
    "[" * 100_000: "cut short or is no JSON",
    "\udcff": "cut short or is no JSON",
}


@pytest.mark.parametrize("line, reason", BAD_LINES.items())
def test_a_line_that_is_no_record_is_named_and_dropped(tmp_path, caplog, line, reason):
    path = tmp_path / "log.jsonl"
    path.write_text(f"{GOOD}\n{line}\n", encoding="utf-8", errors="surrogateescape")
    for read in (read_log, lambda folder: read_figures(folder, 1, "validation/")):
        with pytest.raises(ValueError, match=f"`output_dir` must hold a log .*line 2 of {path}, .*{reason}"):
            read(tmp_path)
    start_log(tmp_path, 1)
    (record,) = caplog.records
    assert record.message.startswith(f"Dropping line 2 of {path}, ") and reason in record.message
    append_log(tmp_path, 2, {"loss": float("nan")})
    assert path.read_text().splitlines()[0] == GOOD and [json.loads(GOOD)] == read_log(tmp_path)[:1]


@pytest.mark.parametrize("make", [os.mkdir, os.mkfifo])
def test_a_log_that_is_no_file_is_refused(tmp_path, make):
    make(tmp_path / "log.jsonl")
    for read in (read_log, lambda folder: read_figures(folder, 1, ""), lambda folder: start_log(folder, 0)):
        with pytest.raises(ValueError, match="`output_dir` must hold a log .*, got '.*log.jsonl': it is no file.$"):
            read(tmp_path)
    assert os.listdir(tmp_path) == ["log.jsonl"]
