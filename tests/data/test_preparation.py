"""Preparing a data set from clips: rows, gaps, dropped clips, resuming; with a scripted DensePose."""

import io
import json
import os
import subprocess
import sys
from typing import Dict

import datasets
import numpy as np
import pytest
import torch
from PIL import Image

from tests.launch import ROOT
from training.data import preparation
from training.data.clip_rows import clip_rows
from training.data.clip_tasks import ClipTask, find_videos
from training.data.row_settings import RowSettings
from training.data.samples import load_prepared
from training.data.video_download import file_digest
from training.media.pictures import iterate_pictures, write_video
from training.poses import clip_poses
from training.poses.clip_poses import ClipDropped
from training.poses.clip_settings import PoseSettings
from training.poses.estimator import DensePoseEstimator


NOBODY = Image.new("RGB", (64, 80))
PERSON = Image.new("RGB", (64, 80), (120, 90, 10))  # one uniform part, since a video's codec changes codes
SETTINGS = RowSettings(PoseSettings(max_gap=1))


@pytest.fixture(scope="module")
def estimator(densepose):
    return DensePoseEstimator(densepose)


@pytest.fixture
def tasks(tmp_path):
    """Four clips in two splits: one complete, one with a gap of one frame, one without a person, one unreadable."""
    tasks = []
    for name, split, frames in (
        ("-walk+turn01", "train", [PERSON] * 4),
        ("gap", "train", [PERSON, NOBODY, PERSON]),
        ("nobody", "test", [NOBODY] * 2),
        ("broken", "test", None),
    ):
        tasks.append(ClipTask(tmp_path / "videos" / f"{name}.mp4", name, split))
        if frames is None:
            tasks[-1].source.write_text("no video")
        else:
            write_video(frames, tasks[-1].source)
    return tasks


def prepare(tasks, output_dir, densepose, **kwargs):
    output_dir.mkdir(exist_ok=True)
    records = preparation.prepare_clips(tasks, output_dir, densepose, SETTINGS, **kwargs)
    return {task.video_id: record for task, record in records}


def rows_of(output_dir, split="train"):
    rows = datasets.load_dataset("parquet", data_dir=str(output_dir / "frames"), split=split)
    return [row | {"image": np.asarray(row["image"]), "iuv": np.asarray(row["iuv"])} for row in rows]


def test_rows_hold_the_video_frames_and_their_iuv(tasks, estimator):
    made = clip_rows(tasks[0].source, "id", "train", estimator)
    rows = made.rows
    assert made.filled == [] and made.notices == []
    names = [(row["video_id"], row["frame_index"], row["split"]) for row in rows]
    assert names == [("id", k, "train") for k in range(4)]
    for row, frame in zip(rows, iterate_pictures(tasks[0].source), strict=True):
        image, iuv = (Image.open(io.BytesIO(row[name]["bytes"])) for name in ("image", "iuv"))
        assert (image.format, iuv.format, image.size, iuv.size) == ("JPEG", "PNG", (64, 80), (64, 80))
        assert np.abs(np.asarray(image, int) - np.asarray(frame, int)).max() <= 3
        expected = np.zeros((80, 64, 3), int)
        expected[2:78, 4:60] = np.asarray(frame)[2:78, 4:60]  # the export's box
        assert np.abs(np.asarray(iuv, int) - expected).max() <= 1


def test_gaps_are_reported_and_long_ones_drop_the_clip(tasks, estimator):
    made = clip_rows(tasks[1].source, "gap", "train", estimator, SETTINGS)
    rows = made.rows
    assert made.filled == [1] and rows[1]["iuv"] == rows[0]["iuv"] and rows[1]["image"] != rows[0]["image"]
    with pytest.raises(ClipDropped, match="`max_gap` must be at least 1 for the gap at frame 1, got 0"):
        clip_rows(tasks[1].source, "gap", "train", estimator, RowSettings(PoseSettings(max_gap=0)))
    with pytest.raises(ClipDropped, match="must show a person, got none in any of 2"):
        clip_rows(tasks[2].source, "nobody", "test", estimator)


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"person": "first"}, "`person` must be one of .*, got 'first'"),
        ({"max_gap": -1}, "`max_gap` must be at least 0, got -1"),
        ({"median": -2}, "`median` must be at least 0, got -2"),
    ],
)
def test_settings_are_checked(settings, message):
    with pytest.raises(ValueError, match=message):
        PoseSettings(**settings)


def test_trainers_can_read_the_data_set_and_its_summary_lists_each_clip(tasks, densepose, tmp_path):
    output_dir = tmp_path / "data"
    preparation.open_data_set(output_dir, {"max_gap": 1})
    records = prepare(tasks, output_dir, densepose)
    assert records["gap"] == {"num_frames": 3, "filled": [1], "sha256": file_digest(tasks[1].source)}
    assert "got none in any of 2" in records["nobody"]["dropped"] and "readable video" in records["broken"]["dropped"]
    rows = load_prepared(str(output_dir / "frames"), "train")
    expected = [(task.video_id, k) for task, num in zip(tasks, (4, 3)) for k in range(num)]
    assert list(zip(rows["video_id"], rows["frame_index"])) == expected
    assert all(isinstance(rows.features[name], datasets.Image) for name in ("image", "iuv"))
    summary = preparation.summarize(tasks, output_dir)
    assert summary["settings"] == {"max_gap": 1} and summary["clips"]["train"] == {
        name: records[name] for name in ("-walk+turn01", "gap")
    }
    lines = preparation.describe(summary)
    assert {"train: 2 clips, 7 frames, 1 of them filled", "test: 0 clips, 0 frames, 0 of them filled"} <= set(lines)
    assert any(line.startswith("  dropped nobody: ") for line in lines)


def test_finished_clips_are_not_prepared_again(tasks, densepose, tmp_path):
    output_dir = tmp_path / "data"
    assert preparation.unfinished(tasks, output_dir) == tasks
    prepare(tasks[1:], output_dir, densepose)
    assert preparation.unfinished(tasks, output_dir) == tasks[:1]
    # As after a kill between shard and record: the clip is prepared again and equals the first result.
    before = rows_of(output_dir)
    tasks[1].record(output_dir).unlink()
    assert preparation.unfinished(tasks, output_dir) == tasks[:2]
    prepare(tasks[1:2], output_dir, densepose)
    np.testing.assert_equal(rows_of(output_dir), before)


def test_a_dropped_clip_is_tried_again_when_its_video_has_changed(tasks, densepose, tmp_path):
    output_dir = tmp_path / "data"
    prepare(tasks, output_dir, densepose)
    assert preparation.unfinished(tasks, output_dir) == []
    write_video([PERSON] * 3, tasks[3].source)  # replaces the broken one
    assert preparation.unfinished(tasks, output_dir) == [tasks[3]]
    assert prepare([tasks[3]], output_dir, densepose)["broken"]["num_frames"] == 3


@pytest.mark.parametrize("place", [0, 1])
def test_a_clip_on_which_densepose_fails_is_dropped_and_not_tried_again(tasks, densepose, tmp_path, place):
    blue = ClipTask(tmp_path / "blue.mp4", "blue", "train")
    write_video([Image.new("RGB", (64, 80), (120, 90, 200))], blue.source)  # the export knows 25 part codes
    tasks.insert(place, blue)
    records = prepare(tasks, tmp_path / "data", densepose)
    reason = "DensePose fails: `image` must be a picture that the model accepts, but it failed on (80, 64, 3)"
    assert records["blue"]["dropped"].startswith(reason)
    assert records["-walk+turn01"]["num_frames"] == 4 and records["gap"]["num_frames"] == 3
    assert preparation.unfinished(tasks, tmp_path / "data") == []


class WrongOutput(torch.nn.Module):
    """An export whose output lacks what DensePose finds."""

    def forward(self, image: torch.Tensor) -> Dict[str, torch.Tensor]:
        return {"boxes": image}


class Failing(torch.nn.Module):
    """An export that fails on every picture."""

    def forward(self, image: torch.Tensor) -> Dict[str, torch.Tensor]:
        assert image.dim() == 5
        return {"boxes": image}


@pytest.mark.parametrize("export", [WrongOutput, Failing])
def test_a_densepose_that_fails_on_every_picture_ends_the_run_and_names_the_clip(tasks, tmp_path, export):
    torch.jit.script(export()).save(str(tmp_path / "broken.pt"))
    with pytest.raises(ValueError, match="^`(output|image)` .* The clip is '-walk.turn01'."):
        prepare(tasks, tmp_path / "data", tmp_path / "broken.pt")
    assert preparation.unfinished(tasks, tmp_path / "data") == tasks, "no clip is recorded as dropped"


def test_a_densepose_that_stops_working_ends_the_run(tasks, estimator, tmp_path, monkeypatch):
    """As after an error of the GPU: the clips after it are not dropped."""
    (tmp_path / "data").mkdir()
    preparation.prepare_clip(tasks[0], tmp_path / "data", estimator, SETTINGS)
    monkeypatch.setattr(estimator, "layouts", [])
    with pytest.raises(ValueError, match="`image` must be .* The clip is 'gap'."):
        preparation.prepare_clip(tasks[1], tmp_path / "data", estimator, SETTINGS)
    assert preparation.unfinished(tasks[:2], tmp_path / "data") == tasks[1:2]


def test_a_clip_whose_shard_was_deleted_is_prepared_again(tasks, densepose, tmp_path):
    prepare(tasks, tmp_path / "data", densepose)
    tasks[1].shards(tmp_path / "data")["train"].unlink()
    assert preparation.unfinished(tasks, tmp_path / "data") == [tasks[1]]


def test_a_video_without_frames_is_dropped(tasks, densepose, tmp_path, monkeypatch):
    monkeypatch.setattr(clip_poses, "iterate_pictures", lambda source: iter(()))
    (record,) = prepare(tasks[:1], tmp_path / "data", densepose).values()
    assert "must have at least one frame" in record["dropped"]


def test_other_settings_are_refused_once_there_are_clips(tasks, densepose, tmp_path):
    preparation.open_data_set(tmp_path, {"densepose": "wrong"})
    preparation.open_data_set(tmp_path, {"densepose": "a", "max_gap": 5})
    prepare(tasks[:1], tmp_path, densepose)
    preparation.open_data_set(tmp_path, {"densepose": "a", "max_gap": 5})
    with pytest.raises(ValueError, match="`output_dir` must keep the settings of .*max_gap 5, now 3"):
        preparation.open_data_set(tmp_path, {"densepose": "a", "max_gap": 3})


@pytest.mark.slow
def test_processes_change_nothing(tasks, densepose, tmp_path):
    records = [prepare(tasks, tmp_path / name, densepose, num_proc=n) for name, n in (("one", 1), ("two", 2))]
    assert records[0] == records[1]
    np.testing.assert_equal(rows_of(tmp_path / "one"), rows_of(tmp_path / "two"))


@pytest.mark.slow
def test_workers_end_when_their_parent_is_killed(tasks, densepose, tmp_path):
    script = f"""
from pathlib import Path
from training.data.clip_tasks import ClipTask
from training.data.row_settings import RowSettings
from training.data.preparation import prepare_clips
if __name__ == "__main__":
    tasks = [ClipTask(Path({str(tasks[0].source)!r}), str(k), "train") for k in range(1000)]
    next(prepare_clips(tasks, Path({str(tmp_path)!r}), {str(densepose)!r}, RowSettings(), num_proc=2))
    print("running", flush=True)
    input()
"""
    (tmp_path / "script.py").write_text(script)
    command, environment = [sys.executable, str(tmp_path / "script.py")], os.environ | {"PYTHONPATH": str(ROOT)}
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    process = subprocess.Popen(command, env=environment, **pipes)
    assert process.stdout.readline() == "running\n"
    process.kill()
    # The workers hold the output pipe too, so it closes when they end.
    process.communicate(timeout=60)


def test_annotations_are_the_rows_without_pictures(tasks, densepose, tmp_path):
    output_dir = tmp_path / "data"
    prepare(tasks, output_dir, densepose)
    folder = preparation.write_annotations(tasks, output_dir)
    rows = datasets.load_dataset("parquet", data_dir=str(folder / "frames"), split="train")
    assert rows.column_names == ["video_id", "frame_index", "iuv", "split"]
    whole = rows_of(output_dir)
    assert len(rows) == len(whole)
    for row, expected in zip(rows, whole, strict=True):
        np.testing.assert_array_equal(row["iuv"], expected["iuv"])
        assert row["frame_index"] == expected["frame_index"]
    written = {path: path.stat().st_mtime_ns for path in folder.rglob("*.parquet")}
    preparation.write_annotations(tasks, output_dir)
    assert written == {path: path.stat().st_mtime_ns for path in folder.rglob("*.parquet")}
    assert json.loads(tasks[0].record(output_dir).read_text())["num_frames"] == 4


def test_hidden_files_folders_and_pipes_are_no_clips(tmp_path):
    (tmp_path / "._dance.mp4").write_bytes(b"\x00\x05\x16\x07")
    (tmp_path / "folder.mp4").mkdir()
    os.mkfifo(tmp_path / "pipe.mp4")
    with pytest.raises(ValueError, match="`video_dir` must hold"):
        find_videos(tmp_path)
    (tmp_path / "dance.mp4").write_text("")
    assert [task.video_id for task in find_videos(tmp_path)[0]] == ["dance"]


def test_a_clip_whose_name_reads_like_a_pattern_has_annotations(densepose, tmp_path):
    task = ClipTask(tmp_path / "walk [1].mp4", "walk [1]", "train")
    write_video([PERSON] * 2, task.source)
    prepare([task], tmp_path / "data", densepose)
    folder = preparation.write_annotations([task], tmp_path / "data")
    assert datasets.Dataset.from_parquet(str(folder / "frames" / "train" / "*.parquet"))["frame_index"][:] == [0, 1]
