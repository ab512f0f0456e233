"""The UBC Fashion builder: lists of ids, and both configurations from a download and from disk, with a scripted
DensePose."""

import hashlib
import itertools
import logging
import os
import re
import shutil
import signal
import subprocess
import sys

import datasets
import numpy as np
import pytest
import torch
from PIL import Image

from tests.densepose_exports import DictExport
from tests.launch import ROOT
from tests.video_server import VideoServer, video_bytes
from training.data import ubc_fashion
from training.data.clip_rows import FEATURES, clip_rows
from training.data.ubc_fashion import SPLITS, UBCFashion, read_video_ids
from training.media.pictures import write_video
from training.poses.estimator import DensePoseEstimator


TRAIN, VALIDATION, TEST = (read_video_ids(split) for split in SPLITS)
USED = {"train": TRAIN[:3], "validation": VALIDATION[:1], "test": TEST[:1]}
NOBODY = Image.new("RGB", (64, 80))
PERSON = Image.new("RGB", (64, 80), (120, 90, 10))  # V, U and part, found by the scripted DensePose


@pytest.fixture(scope="module")
def video_dir(tmp_path_factory):
    """Five videos, the second with a gap of two frames, the third without a person, and a file that is not a video."""
    folder = tmp_path_factory.mktemp("videos")
    frames = {name: [PERSON] * (3 + n) for n, name in enumerate(itertools.chain(*USED.values()))}
    frames[TRAIN[1]][1:3] = [NOBODY] * 2
    frames[TRAIN[2]] = [NOBODY] * 2
    for name, pictures in frames.items():
        write_video(pictures, folder / f"{name}.mp4", fps=25)
    (folder / f"{TRAIN[3]}.mp4").write_text("no video")
    return folder


@pytest.fixture
def build(tmp_path):
    """Return a function that makes builders with a cache for this test only."""
    return lambda name, **settings: UBCFashion(config_name=name, cache_dir=str(tmp_path / "cache"), **settings)


def prepared(builder, split="train", **kwargs):
    builder.download_and_prepare(**kwargs)
    return builder.as_dataset(split=split)


def test_the_splits_are_the_published_lists():
    assert [len(ids) for ids in (TRAIN, VALIDATION, TEST)] == [475, 25, 100]
    assert len({*TRAIN, *VALIDATION, *TEST}) == 600
    assert all(re.fullmatch(r"[A-Za-z0-9+-]{11}", video_id) for video_id in [*TRAIN, *VALIDATION, *TEST])
    # The files of the UBC Fashion page: validation is every 20th line of its training list.
    rest = iter(TRAIN)
    published = [VALIDATION[line // 20] if line % 20 == 0 else next(rest) for line in range(500)]
    for ids, digest in ((published, "e20c40dd760cd45c"), (TEST, "e9cd631922db7a9e")):
        lines = "".join(f"https://m.media-amazon.com/images/I/{video_id}.mp4\n" for video_id in ids)
        assert hashlib.sha256(lines.encode()).hexdigest().startswith(digest)
    with pytest.raises(ValueError, match="`split` must be one of .*, got 'all'"):
        read_video_ids("all")


def test_rows_of_videos_on_disk(build, video_dir, caplog):
    with caplog.at_level(logging.WARNING):
        builder = build("videos", video_dir=video_dir)
        rows = list(prepared(builder))
    facts = {"split": "train", "fps": 25.0, "width": 64, "height": 80}
    assert rows == [
        {"video_id": name, "path": str(video_dir / f"{name}.mp4"), "num_frames": num_frames} | facts
        for name, num_frames in zip(TRAIN[:3], (3, 4, 2), strict=True)
    ]
    assert {name: set(split["video_id"]) for name, split in builder.as_dataset().items()} == {
        name: set(ids) for name, ids in USED.items()
    }
    assert f"Skipping the video {TRAIN[3]}: A video must be a readable mp4" in caplog.text
    assert f"594 videos of UBC Fashion are not in {video_dir}" in caplog.text


def test_rows_of_frames_are_those_of_their_clips(build, video_dir, densepose, caplog):
    with caplog.at_level(logging.WARNING):
        builder = build("frames", video_dir=str(video_dir), densepose=str(densepose))
        builder.download_and_prepare()
    assert f"Skipping the video {TRAIN[2]}" in caplog.text and f"Skipping the video {TRAIN[3]}" in caplog.text
    for split, ids in USED.items():
        dataset = builder.as_dataset(split=split)
        assert dataset.features == FEATURES
        for column in ("image", "iuv"):
            dataset = dataset.cast_column(column, datasets.Image(decode=False))
        kept = [name for name in ids if name != TRAIN[2]]
        estimator, expected = DensePoseEstimator(densepose), []
        for name in kept:
            expected += clip_rows(video_dir / f"{name}.mp4", name, split, estimator).rows
        assert list(dataset) == expected and len(expected) > 0
    row = builder.as_dataset(split="train")[0]
    assert (row["video_id"], row["frame_index"], row["split"]) == (TRAIN[0], 0, "train")
    assert row["image"].size == row["iuv"].size == (64, 80) and row["iuv"].getpixel((32, 40))[2] > 0


@pytest.mark.slow
def test_processes_and_streams_give_the_same_rows(build, tmp_path, video_dir, densepose):
    for name, settings in (("videos", {}), ("frames", {"densepose": str(densepose)})):
        builder = build(name, video_dir=str(video_dir), **settings)
        alone = list(prepared(builder))
        streamed = list(builder.as_streaming_dataset(split="train"))
        assert builder.as_streaming_dataset(split="train").num_shards == 4
        builder = UBCFashion(
            config_name=name, cache_dir=str(tmp_path / "shared"), video_dir=str(video_dir), **settings
        )
        shared = list(prepared(builder, num_proc=2))
        assert len(alone) == {"videos": 3, "frames": 7}[name]
        assert [plain(row) for row in alone] == [plain(row) for row in streamed] == [plain(row) for row in shared]


def plain(row):
    return {name: np.asarray(value).tolist() for name, value in row.items()}


@pytest.mark.slow
def test_processes_do_not_wait_for_the_threads_of_their_parent(tmp_path, video_dir, densepose):
    code = """
import sys, torch
from training.data.ubc_fashion import UBCFashion
torch.rand(1_000_000).exp_()  # starts OpenMP's threads, which do not survive a fork
settings = dict(zip(("cache_dir", "video_dir", "densepose"), sys.argv[1:]))
UBCFashion(config_name="frames", **settings).download_and_prepare(num_proc=2)
"""
    arguments = [str(path) for path in (tmp_path, video_dir, densepose)]
    environment = os.environ | {"OMP_NUM_THREADS": "2"}
    process = subprocess.Popen(
        [sys.executable, "-c", code, *arguments], cwd=ROOT, env=environment, start_new_session=True
    )
    try:
        assert process.wait(timeout=90) == 0
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def test_parquet_of_a_builder_is_a_prepared_data_set(build, tmp_path, video_dir, densepose):
    builder = build("frames", video_dir=str(video_dir), densepose=str(densepose))
    builder.download_and_prepare(str(tmp_path / "parquet"), file_format="parquet")
    dataset = datasets.load_dataset(
        "parquet", data_dir=str(tmp_path / "parquet"), split="test", cache_dir=str(tmp_path)
    )
    assert set(dataset["video_id"]) == {TEST[0]} and dataset[0]["iuv"].size == (64, 80)


def test_poses_follow_the_settings(build, video_dir, densepose, caplog):
    with caplog.at_level(logging.WARNING):
        rows = prepared(build("frames", video_dir=str(video_dir), densepose=str(densepose), max_gap=1))
    assert set(rows["video_id"]) == {TRAIN[0]}, "the gap of two frames is too long"
    assert f"Skipping the video {TRAIN[1]}" in caplog.text


def test_other_videos_densepose_or_settings_use_another_cache(build, tmp_path, video_dir, densepose):
    folder, model = tmp_path / "videos", tmp_path / "model.pt"
    shutil.copytree(video_dir, folder)
    shutil.copy(densepose, model)

    def cache_dir(**settings):
        return build("frames", **{"video_dir": str(folder), "densepose": str(model)} | settings).cache_dir

    first = cache_dir()
    assert cache_dir() == first
    assert len({first, cache_dir(max_gap=1), cache_dir(median=1), cache_dir(person="score")}) == 4
    torch.jit.script(DictExport()).save(model)
    second = cache_dir()
    (folder / f"{TRAIN[4]}.mp4").write_bytes(video_bytes())
    third = cache_dir()
    os.utime(folder / f"{TRAIN[4]}.mp4", ns=(1, 1))
    assert len({first, second, third, cache_dir()}) == 4


def test_a_prepared_cache_is_found_by_a_new_builder_and_grows_with_the_videos(build, tmp_path, video_dir):
    folder = tmp_path / "videos"
    folder.mkdir()
    shutil.copy(video_dir / f"{TEST[0]}.mp4", folder)
    builder = build("videos", video_dir=str(folder))
    assert len(prepared(builder, "test")) == 1
    assert len(build("videos", video_dir=str(folder)).as_dataset(split="test")) == 1
    shutil.copy(video_dir / f"{TEST[0]}.mp4", folder / f"{TEST[1]}.mp4")
    assert len(prepared(builder, "test")) == 2


def test_missing_videos_are_downloaded_first(build, tmp_path, video_dir, monkeypatch):
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    asked = {split: [*names, f"dead+{split[:6]:-<6}"] for split, names in USED.items()}
    monkeypatch.setattr(ubc_fashion, "read_video_ids", asked.get)
    names = list(itertools.chain(*USED.values()))
    content = {name: (video_dir / f"{name}.mp4").read_bytes() for name in names}
    with VideoServer(content) as server:
        server.faults[TRAIN[0]] = [404]
        builder = build("videos", base_url=server.base_url)
        assert prepared(builder)["video_id"] == TRAIN[1:3]
        assert len(server.requests) == 5 + 3
        # The first video is available again: a new builder requests only missing videos, and keeps those it has.
        again = build("videos", base_url=server.base_url)
        assert again.as_dataset(split="train")["video_id"] == TRAIN[1:3]
        assert prepared(again)["video_id"] == TRAIN[:3]
        assert len(server.requests) == 8 + 4
        assert [row["video_id"] for row in again.as_streaming_dataset(split="train")] == TRAIN[:3]
    assert not list(again.video_dir.glob("*.part"))


def test_bad_settings_are_refused(build, tmp_path, video_dir, densepose):
    with pytest.raises(ValueError, match="`video_dir` must be a folder, got .*nowhere"):
        build("videos", video_dir=str(tmp_path / "nowhere"))
    with pytest.raises(ValueError, match="`densepose` must be a TorchScript DensePose for `frames`, got None"):
        build("frames", video_dir=str(video_dir))
    with pytest.raises(ValueError, match="`densepose` must be a TorchScript file.*model.txt"):
        build("frames", video_dir=str(video_dir), densepose=str(tmp_path / "model.txt"))
    with pytest.raises(ValueError, match="`person` must be one of .*, got 'tallest'"):
        build("frames", video_dir=str(video_dir), densepose=str(densepose), person="tallest")
    (tmp_path / "empty").mkdir()
    builder = build("videos", video_dir=str(tmp_path / "empty"))
    with pytest.raises(ValueError, match="`video_dir` must hold videos named ID.mp4, got .*empty"):
        builder.download_and_prepare()
