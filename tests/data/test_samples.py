"""Prepared data sets by name: another process reads one from a Hub on loopback."""

import hashlib
import json
import os
import subprocess
import sys

import datasets
import huggingface_hub
import pytest

from tests.hub_server import Hub
from tests.launch import ROOT
from training.data.samples import load_prepared


READING = """
import hashlib, json, sys
from training.data.samples import load_prepared

def refusal(name):
    try:
        return str(load_prepared(name, "train"))
    except ValueError as error:
        return str(error)

facts = {}
for streaming in (False, True):
    for split in ("train", "validation"):
        rows = list(load_prepared("someone/frames", split, streaming))
        facts[f"{split} {streaming}"] = [
            [row["video_id"], row["frame_index"], hashlib.sha256(row["iuv"].tobytes()).hexdigest()] for row in rows
        ]
facts |= {name: refusal(f"someone/{name}") for name in ("poses", "none")}
print(json.dumps(facts))
"""


@pytest.fixture
def offline(monkeypatch, tmp_path):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "datasets")


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("user/name", "there is no such folder, and the Hub cannot be reached"),
        ("name", "there is no such folder, and the Hub cannot be reached"),
        ("a/b/c", "there is no such folder, and it is no id on the Hub"),
        ("", "there is no such folder, and it is no id on the Hub"),
        ("a/", "there is no such folder, and it is no id on the Hub"),
        ("x" * 5000, "there is no such folder, and it is no id on the Hub"),
        ("a\0b", "there is no such folder, and it is no id on the Hub"),
        (__file__, "it is a file"),
    ],
)
def test_a_missing_data_set_without_a_connection_is_one_sentence_at_once(
    offline, monkeypatch, name, reason, streaming
):
    monkeypatch.setattr(datasets, "load_dataset", lambda *_, **__: pytest.fail("`datasets` would wait and retry"))
    with pytest.raises(ValueError) as refused:
        load_prepared(name, "train", streaming)
    start = "The data set must be a folder of parquet files or an id on the Hub, got "
    assert str(refused.value).startswith(start) and str(refused.value).endswith(f": {reason}.")
    assert len(str(refused.value)) < 500


@pytest.mark.parametrize("cached", ["hub/datasets--someone--MyFrames", "datasets/someone___my_frames"])
def test_a_data_set_in_a_cache_needs_no_connection(offline, monkeypatch, tmp_path, dataset, cached):
    (tmp_path / cached).mkdir(parents=True)
    monkeypatch.setattr(datasets, "load_dataset", lambda **_: dataset)
    assert len(load_prepared("someone/MyFrames", "train")) == len(dataset)


@pytest.mark.slow
def test_a_data_set_on_the_hub_is_read_whole_and_as_a_stream(dataset, tmp_path):
    splits = {"train": dataset.select(range(4)), "validation": dataset.select(range(6, 8))}
    files = {f"data/{split}-00000-of-00001.parquet": rows for split, rows in splits.items()}
    with Hub() as hub:
        for name, columns in (("frames", dataset.column_names), ("poses", ["video_id", "frame_index", "iuv"])):
            for path, rows in files.items():
                rows.select_columns(columns).to_parquet(tmp_path / "rows.parquet")
                hub.commit(f"datasets/someone/{name}", {path: (tmp_path / "rows.parquet").read_bytes()})
        environment = os.environ | hub.environment | {"HF_HOME": str(tmp_path), "PYTHONPATH": str(ROOT)}
        command = [sys.executable, "-c", READING]
        process = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert process.returncode == 0, process.stderr[-3000:]
    facts = json.loads(process.stdout)
    for split, rows in splits.items():
        digests = [hashlib.sha256(row["iuv"].tobytes()).hexdigest() for row in rows]
        expected = [[row["video_id"], row["frame_index"], digest] for row, digest in zip(rows, digests)]
        assert facts[f"{split} False"] == facts[f"{split} True"] == expected
    assert "must have rows with the columns" in facts["poses"] and "'someone/poses' lacks ['image']" in facts["poses"]
    message = "must be a folder of parquet files or an id on the Hub, with a split 'train', got 'someone/none': "
    assert message in facts["none"]
