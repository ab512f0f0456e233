"""Finding the clips of a data set, their poses and their splits on disk."""

import csv

import numpy as np
import pytest
from PIL import Image

from training.data.clip_splits import draw_splits, read_split_file, share_out
from training.data.clip_tasks import ClipTask, find_frame_folders, find_poses, find_ubc_fashion, find_videos
from training.data.ubc_fashion import read_video_ids
from training.media.pictures import write_video


def named(folder, *names):
    """Clips of these names."""
    return [ClipTask(folder / name, name, "train") for name in names]


def test_videos_are_found_by_their_content_or_suffix_and_others_are_named(tmp_path):
    seller = read_video_ids("test")[0]
    write_video([Image.new("RGB", (16, 16))] * 2, tmp_path / "a.mp4")
    (tmp_path / "b.MOV").write_bytes((tmp_path / "a.mp4").read_bytes())
    (tmp_path / "no suffix").write_bytes((tmp_path / "a.mp4").read_bytes())
    (tmp_path / f"{seller}.mp4").write_bytes((tmp_path / "a.mp4").read_bytes())
    (tmp_path / "broken.Mp4").write_text("no video")
    (tmp_path / "notes.txt").write_text("no video")
    for name in ("a.part", "a.rejected"):  # of a download
        (tmp_path / name).write_bytes((tmp_path / "a.mp4").read_bytes())
    Image.new("RGB", (16, 16)).save(tmp_path / "cover.png")
    tasks, notes = find_videos(tmp_path)
    splits = {task.video_id: task.split for task in tasks}
    assert splits == dict.fromkeys(("a", "b", "broken", "no suffix"), "train") | {seller: "test"}
    assert notes == [
        "passed over in --video_dir, since they are no videos: ['a.part', 'a.rejected', 'cover.png', 'notes.txt']"
    ]
    assert [(task.video_id, task.split) for task in find_ubc_fashion(tmp_path)] == [(seller, "test")]
    with pytest.raises(ValueError, match="`ubc_fashion` must have videos in .*, got none. A run without --dry_run"):
        find_ubc_fashion(tmp_path / "videos")
    (tmp_path / "a.mkv").write_text("")
    with pytest.raises(ValueError, match="`video_dir` must hold clips of different names, got 'a.mkv' and 'a.mp4'"):
        find_videos(tmp_path)


def test_a_folder_of_pictures_is_a_clip(tmp_path):
    for name in ("b/1.png", "a/1.JPG", "empty/notes.txt", ".hidden/1.png"):
        (tmp_path / name).parent.mkdir()
        (tmp_path / name).write_text("")
    (tmp_path / "loose.png").write_text("")
    tasks, notes = find_frame_folders(tmp_path)
    assert [task.video_id for task in tasks] == ["a", "b"]
    assert notes == ["passed over in --frames_dir, since they are no folders of pictures: ['empty', 'loose.png']"]
    with pytest.raises(ValueError, match="`frames_dir` must hold one folder .* got .*which holds pictures itself"):
        find_frame_folders(tmp_path / "a")
    with pytest.raises(ValueError, match="`frames_dir` must hold .*, a folder of pictures .*, got .*empty"):
        find_frame_folders(tmp_path / "empty")


def test_names_too_long_for_files_are_refused_before_any_work(tmp_path):
    for length in (200, 201):
        (tmp_path / ("a" * length)).mkdir()
        (tmp_path / ("a" * length) / "1.png").write_text("")
    with pytest.raises(ValueError, match="`frames_dir` must hold clips with names of at most 200 bytes, got 'aaa"):
        find_frame_folders(tmp_path)
    (tmp_path / ("a" * 201) / "1.png").unlink()
    assert [task.video_id for task in find_frame_folders(tmp_path)[0]] == ["a" * 200]


def test_poses_have_the_names_of_their_clips_and_the_rest_is_named(tmp_path):
    (tmp_path / "a").mkdir()
    for name in ("b.npy", "c.pkl", "d.MKV", "other.npy", "notes.txt"):
        (tmp_path / name).write_text("")
    tasks, notes = find_poses(named(tmp_path, "a", "b", "c", "d", "alone"), tmp_path)
    assert [task.poses.name for task in tasks] == ["a", "b.npy", "c.pkl", "d.MKV"]
    assert notes == [
        "passed over in --iuv_dir, since they are no poses: ['notes.txt']",
        "clips without poses in --iuv_dir are left out: ['alone']",
        "poses in --iuv_dir without a clip: ['other']",
    ]
    with pytest.raises(ValueError, match=r"like the clips, as folders or as .npy, .*, got \['a', .*\] for \['x'\]"):
        find_poses(named(tmp_path, "x"), tmp_path)
    (tmp_path / "b").mkdir()
    with pytest.raises(ValueError, match="`iuv_dir` must hold one entry per clip, got 'b' and 'b.npy'"):
        find_poses(named(tmp_path, "b"), tmp_path)


def test_a_draw_takes_whole_clips_by_their_names_alone(tmp_path):
    tasks = named(tmp_path, *(f"clip {index}" for index in range(12)))
    drawn = {task.video_id: task.split for task in draw_splits(tasks, 2, 3, seed=5)}
    again = {task.video_id: task.split for task in draw_splits(tasks[::-1], 2, 3, seed=5)}
    assert drawn == again and drawn.keys() == {task.video_id for task in tasks}
    assert sorted(drawn.values()) == ["test"] * 3 + ["train"] * 7 + ["validation"] * 2
    assert drawn != {task.video_id: task.split for task in draw_splits(tasks, 2, 3, seed=6)}
    with pytest.raises(ValueError, match="must leave a clip for training, got 1 and 0 of 1. Of a single"):
        draw_splits(tasks[:1], 1, 0, seed=0)


def test_a_split_file_gives_each_clip_its_split(tmp_path):
    path = tmp_path / "splits.csv"
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([["clip", "split"], ["a, b", "test"], ["c", "train"], []])
    assert read_split_file(path) == {"a, b": "test", "c": "train"}
    tasks, notes = share_out(named(tmp_path, "a, b", "c", "d"), split_file=path)
    assert [(task.video_id, task.split) for task in tasks] == [("a, b", "test"), ("c", "train")]
    assert notes == ["clips that --split_file does not name are left out: ['d']"]
    with pytest.raises(ValueError, match=r"`split_file` must name clips that are there, got \['a, b'\]"):
        share_out(named(tmp_path, "c"), split_file=path)


@pytest.mark.parametrize("text", ["a;train", "a,training", "a,train\na,test", "a,train,b", "\0"])
def test_a_broken_split_file_names_the_line(tmp_path, text):
    (tmp_path / "splits.csv").write_text("b,train\n" + text)
    with pytest.raises(ValueError, match="`split_file` must have lines CLIP,SPLIT, .* got line [23] of .*splits.csv"):
        read_split_file(tmp_path / "splits.csv")
    (tmp_path / "splits.csv").write_text("clip,split\n")
    with pytest.raises(ValueError, match="`split_file` must name at least one clip, got .*splits.csv', which n"):
        read_split_file(tmp_path / "splits.csv")
    with pytest.raises(ValueError, match="`split_file` must be a CSV file, got .*: "):
        read_split_file(tmp_path / "missing.csv")


def test_splits_without_a_clip_are_refused(tmp_path):
    with pytest.raises(ValueError, match="`splits` must have at least one clip, got none of 1 in test"):
        share_out(named(tmp_path, "a"), splits=["test"])


def test_the_digest_of_a_clip_is_that_of_its_files(tmp_path):
    for folder in ("frames", "poses"):
        (tmp_path / folder).mkdir()
        np.save(tmp_path / folder / "0.npy", np.zeros(3))
    task = ClipTask(tmp_path / "frames", "a", "train", tmp_path / "poses")
    first = task.digest()
    (tmp_path / "frames" / "0.npy").touch()
    assert task.digest() == first
    np.save(tmp_path / "poses" / "0.npy", np.ones(3))
    assert task.digest() != first


def test_a_split_file_that_is_a_folder_is_named_once(tmp_path):
    with pytest.raises(ValueError) as refused:
        read_split_file(tmp_path)
    assert str(refused.value) == f"`split_file` must be a CSV file, got {str(tmp_path)!r}: Is a directory."
