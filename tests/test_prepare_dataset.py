"""The command that prepares a data set, from videos on disk: kills, processes and publishing."""

import functools
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import datasets
import huggingface_hub
import numpy as np
import pytest
import torch
from PIL import Image

from pipeline_dreampose import DreamPosePipeline
from tests.densepose_exports import TupleExport
from tests.hub_server import TOKEN, Hub
from tests.launch import ROOT, launch_two_processes
from tests.tiny_components import get_dummy_components
from training import prepare_dataset, train
from training.data import ubc_fashion
from training.data.ubc_fashion import read_video_ids
from training.hub import publishing
from training.media.pictures import write_video
from training.options import data_set


NOBODY = Image.new("RGB", (64, 80))


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    """Arguments that name six videos (the last shows nobody) and a DensePose."""
    folder = tmp_path_factory.mktemp("inputs")
    (folder / "videos").mkdir()
    for index, name in enumerate(read_video_ids("train")[:4] + read_video_ids("test")[:2]):
        # A video codec changes part codes, so the person is one plain part.
        person = Image.new("RGB", (64, 80), (100 + 20 * index, 90, 10))
        frames = [NOBODY] * 3 if index == 5 else [person, NOBODY, *[person] * (3 + index)]
        write_video(frames, folder / "videos" / f"{name}.mp4")
    torch.jit.script(TupleExport()).save(folder / "model.pt")
    return ["--video_dir", folder / "videos", "--densepose", folder / "model.pt", "--device", "cpu"]


def parse(*words):
    return prepare_dataset.parse_args([str(word) for word in words])


def rows_of(output_dir):
    rows = datasets.load_dataset("parquet", data_dir=str(output_dir / "frames"))
    return {
        split: [row | {name: np.asarray(row[name]) for name in ("image", "iuv")} for row in rows[split]]
        for split in rows
    }


@pytest.fixture(scope="module")
def undisturbed(inputs, tmp_path_factory):
    output_dir = tmp_path_factory.mktemp("undisturbed")
    prepare_dataset.main(parse("--output_dir", output_dir, *inputs))
    return output_dir


def test_the_data_set_and_the_report(inputs, undisturbed, capsys):
    rows = rows_of(undisturbed)
    train, test = read_video_ids("train")[:4], read_video_ids("test")[:1]
    expected = [(name, k) for index, name in enumerate(train) for k in range(5 + index)]
    assert sorted((row["video_id"], row["frame_index"]) for row in rows["train"]) == sorted(expected)
    assert {row["video_id"] for row in rows["test"]} == set(test)
    prepare_dataset.main(parse("--output_dir", undisturbed, *inputs))  # prints only the report
    printed = capsys.readouterr().out
    assert "6 clips, prepared by 1 process:" in printed and "train: 4 clips, 26 frames, 4 of them filled" in printed
    assert f"dropped {read_video_ids('test')[1]}: `frames` must show a person" in printed
    assert f'load_dataset("parquet", data_dir="{undisturbed / "frames"}")' in printed


@pytest.mark.slow
def test_killed_at_random_moments_the_rows_are_those_of_an_undisturbed_run(inputs, undisturbed, tmp_path):
    words = [sys.executable, ROOT / "training/prepare_dataset.py", "--output_dir", tmp_path, *inputs]
    command, environment = [str(word) for word in words], os.environ | {"PYTHONPATH": str(ROOT)}
    draw, kills = random.Random(0), 0
    while kills < 3:
        process = subprocess.Popen(
            command, env=environment, start_new_session=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
        )
        seen = num_files(tmp_path)
        while process.poll() is None and num_files(tmp_path) == seen:  # until its first shard, partial file or record
            time.sleep(0.001)
        time.sleep(draw.uniform(0, 0.05))
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            kills += 1
        output = process.communicate()[0].decode()
        assert process.returncode in (0, -signal.SIGKILL), output[-2000:]
        if process.returncode == 0:
            break
    assert kills > 0
    prepare_dataset.main(parse("--output_dir", tmp_path, *inputs))
    np.testing.assert_equal(rows_of(tmp_path), rows_of(undisturbed))


@pytest.mark.slow
def test_stage_1_trains_and_validates_on_the_data_set(inputs, tmp_path):
    (tmp_path / "videos").mkdir()
    for name in (read_video_ids("train")[0], read_video_ids("validation")[0]):
        write_video([Image.new("RGB", (64, 80), (120, 90, 10))] * 6, tmp_path / "videos" / f"{name}.mp4")
    prepare_dataset.main(parse("--output_dir", tmp_path, *inputs, "--video_dir", tmp_path / "videos"))
    DreamPosePipeline(**get_dummy_components()).save_pretrained(tmp_path / "base")
    words = ["--pretrained_model_name_or_path", tmp_path / "base", "--train_data", tmp_path / "frames"]
    words += ["--height", 80, "--width", 64, "--output_dir", tmp_path / "run", "--logging_steps", 1]
    words += ["--max_train_steps", 2, "--train_batch_size", 2, "--latent_cache_dir", tmp_path / "cache"]
    words += ["--validation_steps", 2, "--num_validation_pairs", 2, "--num_validation_frames", 2]
    train.main(train.parse_args([str(word) for word in words]))
    records = [json.loads(line) for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
    assert [record["step"] for record in records if 0 < record.get("loss", 0) < 10] == [1, 2]
    assert records[-1]["validation/psnr"] > 0 and (tmp_path / "run" / "validation").is_dir()
    DreamPosePipeline.from_pretrained(tmp_path / "run")


def num_files(folder):
    return sum(len(files) for _, _, files in os.walk(folder))


@pytest.mark.slow
def test_two_processes_share_the_clips(inputs, undisturbed, tmp_path):
    result = launch_two_processes("training/prepare_dataset.py", ["--output_dir", tmp_path, *inputs])
    assert "6 clips, prepared by 2 processes:" in result.stdout
    np.testing.assert_equal(rows_of(tmp_path), rows_of(undisturbed))


@pytest.fixture
def loopback(monkeypatch):
    with Hub() as server:
        api = functools.partial(huggingface_hub.HfApi, endpoint=server.endpoint, token=TOKEN)
        monkeypatch.setattr(publishing, "HfApi", api)
        monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_DISABLE_XET", True)  # as in the server's environment
        yield server


def download(files, folder):
    """Write the files of a repository to a folder."""
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)


def test_ids_frame_numbers_and_iuv_are_published_and_no_pictures(inputs, undisturbed, loopback, tmp_path, capsys):
    prepare_dataset.main(parse("--output_dir", undisturbed, *inputs, "--push_to_hub", "someone/ubc-densepose"))
    files = loopback.files("datasets/someone/ubc-densepose")
    assert {Path(name).suffix for name in files} <= {"", ".json", ".md", ".parquet"}
    assert len([name for name in files if name.endswith(".parquet")]) == 5
    download(files, tmp_path)
    rows = datasets.load_dataset(str(tmp_path), split="train")  # with the settings in the card
    assert rows.column_names == ["video_id", "frame_index", "iuv", "split"] and len(rows) == 26
    clips = json.loads((tmp_path / "summary.json").read_text())["clips"]
    assert len(clips["train"]) == 4 and all(len(record["sha256"]) == 64 for record in clips["train"].values())
    card = (tmp_path / "README.md").read_text()
    assert "$" not in card and "train: 4 clips, 26 frames" in card and TOKEN not in card
    assert "UBC Fashion" in card and "`image`" not in card
    assert "someone/ubc-densepose" in capsys.readouterr().out


def test_no_more_is_published_than_the_clips_of_this_run(inputs, undisturbed, loopback):
    words = ["--splits", "test", "--push_to_hub", "someone/test"]
    prepare_dataset.main(parse("--output_dir", undisturbed, *inputs, *words))
    files = loopback.files("datasets/someone/test")
    assert [name for name in files if name.endswith(".parquet")] == [
        f"frames/test/{read_video_ids('test')[0]}.parquet"
    ]
    assert b'split="test"' in files["README.md"] and b"train" not in files["README.md"].split(b"---")[1]


@pytest.fixture
def own(inputs, tmp_path):
    """Arguments that name a video of the user."""
    (tmp_path / "videos").mkdir()
    write_video([Image.new("RGB", (64, 80), (120, 90, 10))] * 3, tmp_path / "videos" / "me dancing.mp4")
    return ["--output_dir", tmp_path / "out", *inputs, "--video_dir", tmp_path / "videos"]


def test_own_videos_become_training_data_and_can_be_published(own, loopback, tmp_path):
    prepare_dataset.main(parse(*own, "--push_to_hub", "someone/dancing", "--include_images"))
    assert [row["video_id"] for row in rows_of(tmp_path / "out")["train"]] == ["me dancing"] * 3
    download(loopback.files("datasets/someone/dancing"), tmp_path / "hub")
    rows = datasets.load_dataset(str(tmp_path / "hub"), split="train")
    assert "image" in rows.column_names and len(rows) == 3
    card = (tmp_path / "hub" / "README.md").read_text()
    assert "`image`" in card and "UBC Fashion" not in card


def test_pictures_of_others_are_not_published(inputs, undisturbed, loopback):
    words = ["--push_to_hub", "someone/pictures", "--include_images"]
    with pytest.raises(ValueError, match="`include_images` must be for pictures of your own, got '.*' of UBC Fashion"):
        prepare_dataset.main(parse("--output_dir", undisturbed, *inputs, *words))
    assert not loopback.requests


def test_dropped_clips_alone_are_not_published(own, loopback, tmp_path):
    write_video([NOBODY] * 2, tmp_path / "videos" / "me dancing.mp4")
    with pytest.raises(ValueError, match="`push_to_hub` must have clips to publish, but all 1 were dropped"):
        prepare_dataset.main(parse(*own, "--push_to_hub", "someone/dancing"))
    assert not loopback.requests


def test_a_wrong_densepose_is_refused_before_any_work(inputs, tmp_path):
    (tmp_path / "wrong.pt").write_text("no model")
    with pytest.raises(ValueError, match="`densepose` must be a TorchScript DensePose; .*wrong.pt' is not"):
        prepare_dataset.main(parse("--output_dir", tmp_path / "out", *inputs[:3], tmp_path / "wrong.pt"))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("path", ["/nowhere", None])
def test_a_push_that_fails_loses_nothing(inputs, undisturbed, loopback, monkeypatch, path):
    # The server refuses, or does not answer.
    endpoint = "http://127.0.0.1:9" if path is None else loopback.endpoint + path
    monkeypatch.setattr(publishing, "HfApi", functools.partial(huggingface_hub.HfApi, endpoint=endpoint, token=TOKEN))
    options = parse("--output_dir", undisturbed, *inputs, "--push_to_hub", "someone/ubc-densepose")
    message = "`push_to_hub` must name a repository .* got 'someone/ubc-densepose': .* pushes it later"
    if path is None:
        message = r"pushed to 'someone/ubc-densepose' \(`push_to_hub`\), the connection to the Hub broke: .* later"
    with pytest.raises(ValueError, match=message):
        prepare_dataset.main(options)
    assert len(rows_of(undisturbed)["train"]) == 26


def test_the_splits_are_those_of_the_data_set():
    assert data_set.SPLITS == ubc_fashion.SPLITS


def test_bad_input_is_one_clear_error(inputs, undisturbed, tmp_path, capsys):
    model = inputs[2:4]
    for words, message in (
        ([*inputs, "--num_proc", 0], "`--num_proc` must be at least 1, got 0"),
        ([*inputs, "--include_images"], "`--include_images` must go with `--push_to_hub` and your own pictures, got"),
        (["--ubc_fashion", *model, "--push_to_hub", "a/b", "--include_images"], "and your own pictures"),
        (inputs[2:], "one of the arguments --frames_dir --video_dir --ubc_fashion is required"),
        ([*inputs, "--ubc_fashion"], "argument --ubc_fashion: not allowed with argument --video_dir"),
        (inputs[:2], "`--densepose` or `--iuv_dir` must be given, and not both"),
        ([*inputs, "--iuv_dir", tmp_path], "`--densepose` or `--iuv_dir` must be given, and not both"),
        ([*inputs, "--channel_order", "iuv"], "`--channel_order` must go with `--iuv_dir`, got iuv"),
        ([*inputs, "--max_video_mb", 3], "`--max_video_mb` must go with `--ubc_fashion`, got 3"),
        ([*inputs, "--split_seed", 3], "`--split_seed` must go with `--validation_clips` or `--test_clips`, got 3"),
        ([*inputs, "--test_clips", 1, "--holdout_frames", 0.2], "must be the only way to make splits, got"),
        ([*inputs, "--holdout_frames", 1.5], "`--holdout_frames` must be at most 0.9, got 1.5"),
        ([*inputs, "--square_pixels", "3x4"], "must be W:H, two whole numbers such as 3:4, 10:1 at most, got '3x4'"),
        ([*inputs, "--square_pixels", "1:99"], "10:1 at most, got '1:99'"),
        ([*inputs, "--push_to_hub", "a/b/c"], "`--push_to_hub` must be OWNER/NAME, got 'a/b/c'"),
        ([*model, "--video_dir", tmp_path / "none"], "`--video_dir` must be a folder, got .*none"),
        ([*inputs, "--max_gap", -1], "`max_gap` must be at least 0, got -1"),
    ):
        with pytest.raises(SystemExit):
            parse("--output_dir", tmp_path / "out", *words)
        assert message.split(", got .*")[0] in capsys.readouterr().err
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="`video_dir` must hold at least one clip, a video, got .*empty"):
        prepare_dataset.main(parse("--output_dir", tmp_path / "o", *inputs, "--video_dir", tmp_path / "empty"))
    with pytest.raises(
        ValueError, match="`densepose` must be a TorchScript file, .* got 'a.pt', which does not exist"
    ):
        prepare_dataset.main(parse("--output_dir", tmp_path / "o", *inputs, "--densepose", "a.pt"))
    with pytest.raises(ValueError, match="`output_dir` must keep the settings .* max_gap 5, now 2"):
        prepare_dataset.main(parse("--output_dir", undisturbed, *inputs, "--max_gap", 2))


@pytest.fixture
def frames_and_iuv(tmp_path):
    """Arguments that name two clips of ten pictures, numbered from 100, with the IUV of all but number 103."""
    for clip, shade in (("ann", 100), ("bob", 140)):
        for kind in ("frames", "iuv"):
            (tmp_path / kind / clip).mkdir(parents=True)
        for number in range(100, 110):
            Image.new("RGB", (32, 32), (shade, number, 9)).save(tmp_path / "frames" / clip / f"{number}.png")
            if number != 103:
                Image.new("RGB", (32, 32), (number, shade, 7)).save(tmp_path / "iuv" / clip / f"{number}.png")
    return ["--frames_dir", tmp_path / "frames", "--iuv_dir", tmp_path / "iuv", "--output_dir", tmp_path / "out"]


def test_frames_and_their_iuv_become_rows_whose_clips_end_in_held_out_frames(frames_and_iuv, tmp_path, capsys):
    prepare_dataset.main(parse(*frames_and_iuv, "--holdout_frames", 0.2, "--square_pixels", "4:5"))
    rows = rows_of(tmp_path / "out")
    numbers = {split: [(row["video_id"], row["frame_index"]) for row in rows[split]] for split in rows}
    assert numbers["train"] == [(clip, number) for clip in ("ann", "bob") for number in range(100, 108)]
    assert numbers["test"] == [(clip, number) for clip in ("ann", "bob") for number in (108, 109)]
    assert {row["split"] for row in rows["test"]} == {"test"}
    for row in rows["train"][:8]:
        shown = 102 if row["frame_index"] == 103 else row["frame_index"]  # the gap copies its earlier neighbour
        assert row["image"].shape == row["iuv"].shape == (40, 32, 3) and (row["iuv"] == (shown, 100, 7)).all()
        assert np.abs(row["image"].astype(int) - (100, row["frame_index"], 9)).max() <= 3  # JPEG
    printed = capsys.readouterr().out
    assert "train: 2 clips, 16 frames, 2 of them filled" in printed
    assert "test: 4 frames at the ends of these clips. It shows the subjects of the training set." in printed
    with pytest.raises(ValueError, match="`output_dir` must keep the settings .* holdout_frames 0.2, now None"):
        prepare_dataset.main(parse(*frames_and_iuv, "--square_pixels", "4:5"))


def test_the_report_counts_one_clip_and_two(frames_and_iuv, tmp_path, capsys):
    prepare_dataset.main(parse(*frames_and_iuv, "--test_clips", 1))
    lines = capsys.readouterr().out.splitlines()
    assert "2 clips, prepared by 1 process:" in lines and "test: 1 clip, 10 frames, 1 of them filled" in lines


def test_the_line_that_loads_the_rows_works_for_a_folder_that_reads_like_a_pattern(frames_and_iuv, tmp_path, capsys):
    words = [*frames_and_iuv[:-1], tmp_path / "a [x]"]
    prepare_dataset.main(parse(*words))
    line = capsys.readouterr().out.splitlines()[-1]
    assert len(eval(line, {"load_dataset": datasets.load_dataset})["train"]) == 20


def test_clips_are_drawn_for_the_splits_and_keep_them(frames_and_iuv, tmp_path):
    prepare_dataset.main(parse(*frames_and_iuv, "--test_clips", 1))
    rows = rows_of(tmp_path / "out")
    assert {row["video_id"] for row in rows["train"]} | {row["video_id"] for row in rows["test"]} == {"ann", "bob"}
    assert len(rows["train"]) == len(rows["test"]) == 10
    with pytest.raises(ValueError, match="`output_dir` must keep the split of each clip, got '.*', .* is train now"):
        prepare_dataset.main(parse(*frames_and_iuv))


def test_a_dry_run_prints_the_table_and_writes_nothing(frames_and_iuv, tmp_path, capsys):
    (tmp_path / "frames" / "cat").mkdir()
    Image.new("RGB", (32, 32)).save(tmp_path / "frames" / "cat" / "1.png")
    for number in range(104, 109):  # more than `max_gap` in a row with number 103
        (tmp_path / "iuv" / "bob" / f"{number}.png").unlink()
    before = num_files(tmp_path)
    prepare_dataset.main(parse(*frames_and_iuv, "--holdout_frames", 0.2, "--dry_run"))
    assert num_files(tmp_path) == before and not (tmp_path / "out").exists()
    lines = capsys.readouterr().out.splitlines()
    assert [line.split() for line in lines[:3]] == [
        ["clip", "split", "frames", "size", "gaps"],
        ["ann", "train,", "last", "2", "test", "10", "32x32", "1"],
        ["bob", "dropped"],
    ]
    assert lines[3] == "bob would be dropped: `max_gap` must be at least 6 for the gap at frame 3, got 5."
    assert lines[4] == "clips without poses in --iuv_dir are left out: ['cat']"


def test_frames_with_long_gaps_drop_the_clip(frames_and_iuv, tmp_path, capsys):
    for number in range(101, 108):
        (tmp_path / "frames" / "ann" / f"{number}.png").unlink()
    prepare_dataset.main(parse(*frames_and_iuv))
    assert "dropped ann: `frames_dir` must be consecutive frames" in capsys.readouterr().out
    assert {row["video_id"] for row in rows_of(tmp_path / "out")["train"]} == {"bob"}


def test_broken_and_odd_frames_drop_their_clip_alone(frames_and_iuv, tmp_path, capsys):
    frames = tmp_path / "frames"
    (frames / "ann" / "110.png").symlink_to(tmp_path / "missing.png")
    for clip in ("cat", "dan"):
        shutil.copytree(frames / "bob", frames / clip)
        shutil.copytree(tmp_path / "iuv" / "bob", tmp_path / "iuv" / clip)
    (frames / "cat" / "105.png").write_text("no picture")
    Image.new("RGB", (16, 32)).save(frames / "dan" / "105.png")
    prepare_dataset.main(parse(*frames_and_iuv))
    printed = capsys.readouterr().out
    assert "dropped ann: `frames_dir` must be a file, got " in printed
    assert "dropped cat: `frames_dir` must be a readable picture, got " in printed
    assert "dropped dan: its frames must have one size, got 32x32 and, in frame 105, 16x32." in printed
    assert {row["video_id"] for row in rows_of(tmp_path / "out")["train"]} == {"bob"}


def test_the_same_command_prepares_changed_clips_again_and_names_those_of_earlier_runs(
    frames_and_iuv, tmp_path, capsys
):
    prepare_dataset.main(parse(*frames_and_iuv))
    assert "--output_dir also has" not in capsys.readouterr().out
    (tmp_path / "iuv" / "ann" / "103.png").write_bytes((tmp_path / "iuv" / "ann" / "109.png").read_bytes())
    prepare_dataset.main(parse(*frames_and_iuv))
    shown = [row["iuv"][0, 0, 0] for row in rows_of(tmp_path / "out")["train"] if row["video_id"] == "ann"]
    assert shown[3] == 109
    (tmp_path / "frames" / "ann" / "104.png").write_text("no picture")
    prepare_dataset.main(parse(*frames_and_iuv))
    assert {row["video_id"] for row in rows_of(tmp_path / "out")["train"]} == {"bob"}
    (tmp_path / "split.csv").write_text("ann,train\n")
    with pytest.raises(ValueError, match="`output_dir` must get at least one clip, got none: all 1 were dropped"):
        prepare_dataset.main(parse(*frames_and_iuv, "--split_file", tmp_path / "split.csv"))
    assert "out: ['frames/train/bob.parquet']" in capsys.readouterr().out


def test_a_dry_run_drops_the_clips_that_a_run_drops(frames_and_iuv, tmp_path, capsys):
    for kind in ("frames", "iuv"):
        for number in set(range(100, 110)) - {103 if kind == "iuv" else 100, 100}:
            (tmp_path / kind / "ann" / f"{number}.png").unlink(missing_ok=True)
    prepare_dataset.main(parse(*frames_and_iuv, "--holdout_frames", 0.2, "--dry_run"))
    assert "ann would be dropped: too few frames to hold out some of them: 1." in capsys.readouterr().out


@pytest.mark.parametrize("name", ["frames", "iuv"])
def test_the_data_set_stays_out_of_the_folders_that_it_is_made_of(frames_and_iuv, tmp_path, name):
    before = num_files(tmp_path)
    with pytest.raises(ValueError, match="`output_dir` must spare what is read, but "):
        prepare_dataset.main(parse(*frames_and_iuv[:4], "--output_dir", tmp_path / name))
    assert num_files(tmp_path) <= before + 1  # the lock


def test_pictures_are_seen_by_densepose_where_their_numbers_leave_a_gap(frames_and_iuv, inputs, tmp_path):
    (tmp_path / "frames" / "ann" / "104.png").unlink()
    prepare_dataset.main(parse(*frames_and_iuv[:2], *inputs[2:], *frames_and_iuv[4:]))
    rows = rows_of(tmp_path / "out")["train"]
    assert [row["frame_index"] for row in rows if row["video_id"] == "ann"] == [
        100,
        101,
        102,
        103,
        105,
        *range(106, 110),
    ]
    middle = [row["iuv"][16, 16].tolist() for row in rows]
    expected = [row["image"][16, 16].tolist() for row in rows]
    assert all(abs(a - b) <= 3 for pair in zip(middle, expected) for a, b in zip(*pair))


def test_the_card_says_that_held_out_frames_show_the_subjects_of_the_training_set(frames_and_iuv, loopback, tmp_path):
    words = ["--holdout_frames", 0.2, "--push_to_hub", "someone/ann-and-bob", "--include_images"]
    prepare_dataset.main(parse(*frames_and_iuv, *words))
    download(loopback.files("datasets/someone/ann-and-bob"), tmp_path / "hub")
    card = (tmp_path / "hub" / "README.md").read_text()
    assert "- test: 4 frames at the ends of these clips. It shows the subjects of the training set." in card
    rows = datasets.load_dataset(str(tmp_path / "hub"))
    assert {split: len(rows[split]) for split in rows} == {"train": 16, "test": 4}
