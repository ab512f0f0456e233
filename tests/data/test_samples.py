"""Prepared data sets by name: another process reads one from a Hub on loopback."""

import hashlib
import json
import os
import subprocess
import sys

import pytest

from tests.hub_server import Hub
from tests.launch import ROOT


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
    assert "must have the columns" in facts["poses"] and "'someone/poses' lacks ['image']" in facts["poses"]
    message = "must be a folder of parquet files or an id on the Hub, with a split 'train', got 'someone/none': "
    assert message in facts["none"]
