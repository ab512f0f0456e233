import os

import pytest
from PIL import Image

from training.media.outputs import (
    RECORD_NAME,
    check_output,
    check_outputs,
    check_picture_folder,
    record_files,
    write_picture_folder,
)


def test_outputs_that_cannot_be_written_are_refused_and_nothing_changes(tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    (tmp_path / "link").symlink_to("nothing")
    cases = [
        ("file", True, "which is a file"),
        (".", False, "which is a folder"),
        ("file/a/b", True, "which is below the file"),
        ("x" * 201, True, "which is too long"),
        ("/".join(["long"] * 900), True, "which is too long"),
        ("link", True, "is a link that leads nowhere"),
        ("a\0b", True, "which has a null character"),
    ]
    for name, is_folder, reason in cases:
        with pytest.raises(ValueError, match=f"`output` must be a f.*, got .*{reason}"):
            check_output("output", tmp_path / name, is_folder)
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    for name, is_folder in (("new/a", True), ("file", False)):
        with pytest.raises(ValueError, match="`output` must be a f.* is read-only"):
            check_output("output", tmp_path / name, is_folder)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "link"]


def test_an_empty_name_is_not_the_current_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match="`output` must be a folder that can be written, got '', which is empty.$"):
        check_output("output", "")


@pytest.mark.skipif(not os.path.isdir("/proc/self"), reason="needs a folder that takes no files")
def test_a_folder_that_takes_no_files_is_refused():
    """Its permissions are those of any folder, and root has them everywhere."""
    for path, is_folder in (("/proc/video.mp4", False), ("/proc", True)):
        with pytest.raises(ValueError, match=f"`output` must be a f.* got '{path}', but '/proc' (takes no|is read)"):
            check_output("output", path, is_folder)


def test_outputs_that_can_be_written_pass(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in (".", "new", "new/er", tmp_path / ("é" * 60), tmp_path):
        check_output("output", name)
    (tmp_path / "file").touch()
    check_output("output", "file", is_folder=False)


def pictures(num):
    return [Image.new("RGB", (2, 2)) for _ in range(num)]


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_only_recorded_files_are_deleted(tmp_path):
    assert write_picture_folder(pictures(3), tmp_path) == 3
    (tmp_path / "notes.png").write_text("the user's")
    write_picture_folder(pictures(1), tmp_path)
    assert names(tmp_path) == [RECORD_NAME, "00000.png", "notes.png"]
    (tmp_path / "00007.png").write_text("the user's")
    with pytest.raises(ValueError, match="`output` must be .* with 00007.png, which no run recorded"):
        write_picture_folder(pictures(9), tmp_path, "output")
    assert names(tmp_path) == [RECORD_NAME, "00000.png", "00007.png", "notes.png"]


def test_a_record_names_no_files_elsewhere(tmp_path):
    folder = tmp_path / "folder"
    folder.mkdir()
    (tmp_path / "00001.png").write_text("the user's")
    (folder / "notes.txt").write_text("the user's")
    (folder / RECORD_NAME).write_bytes(b"../00001.png\nnotes.txt\n\xff\n/00001.png\n")
    write_picture_folder(pictures(1), folder)
    assert (tmp_path / "00001.png").exists() and names(folder) == [RECORD_NAME, "00000.png", "notes.txt"]


def test_a_stopped_run_leaves_a_record_of_what_it_wrote(tmp_path):
    def stop_after_two():
        yield from pictures(2)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_picture_folder(stop_after_two(), tmp_path)
    check_picture_folder("output", tmp_path)
    write_picture_folder(pictures(1), tmp_path)
    assert names(tmp_path) == [RECORD_NAME, "00000.png"]


def test_a_run_that_stops_leaves_an_earlier_video_as_it_was(tmp_path):
    def colored(color, num, stops):
        for _ in range(num):
            yield Image.new("RGB", (2, 2), color)
        if stops:
            assert (tmp_path / "00000.png").read_bytes() == red, "nothing is replaced before the last frame"
            raise KeyboardInterrupt

    write_picture_folder(colored("red", 3, stops=False), tmp_path)
    red, before = (tmp_path / "00000.png").read_bytes(), names(tmp_path)
    for num in (2, 5):
        with pytest.raises(KeyboardInterrupt):
            write_picture_folder(colored("blue", num, stops=True), tmp_path)
        assert names(tmp_path) == before, "no half-written video is left"
        assert {path.read_bytes() for path in tmp_path.glob("*.png")} == {red}
    assert write_picture_folder(colored("blue", 4, stops=False), tmp_path) == 4
    assert {Image.open(path).getpixel((0, 0)) for path in tmp_path.glob("*.png")} == {(0, 0, 255)}
    assert names(tmp_path) == [RECORD_NAME, *(f"0000{index}.png" for index in range(4))]
    check_picture_folder("output", tmp_path)


def test_frames_appear_one_by_one_in_a_folder_without_a_video(tmp_path):
    def counted():
        for index, picture in enumerate(pictures(3)):
            assert len(list(tmp_path.glob("*.png"))) == index
            yield picture

    (tmp_path / "notes.txt").write_text("the user's")
    record_files([tmp_path / "other.mp4"])
    assert write_picture_folder(counted(), tmp_path) == 3


@pytest.mark.parametrize("is_recorded", [True, False])
def test_pictures_are_never_written_through_a_link(tmp_path, is_recorded):
    folder = tmp_path / "folder"
    write_picture_folder(pictures(1), folder)
    (tmp_path / "notes.txt").write_text("the user's")
    (folder / "00001.png").symlink_to("../notes.txt")
    if is_recorded:
        (folder / RECORD_NAME).write_text("00000.png\n00001.png\n")
        write_picture_folder(pictures(2), folder)
        assert not os.path.islink(folder / "00001.png") and names(folder) == [RECORD_NAME, "00000.png", "00001.png"]
    else:
        with pytest.raises(ValueError, match="with 00001.png, which no run recorded"):
            write_picture_folder(pictures(2), folder)
    assert (tmp_path / "notes.txt").read_text() == "the user's"


@pytest.mark.parametrize("kind", ["link", "dead link", "pipe", "folder"])
def test_a_record_that_is_no_file_is_refused(tmp_path, kind):
    folder, record = tmp_path / "folder", tmp_path / "folder" / RECORD_NAME
    folder.mkdir()
    (tmp_path / "notes.txt").write_text("video.mp4")
    (folder / "video.mp4").write_text("the user's")
    if kind == "pipe":
        os.mkfifo(record)
    elif kind == "folder":
        record.mkdir()
    else:
        record.symlink_to("../notes.txt" if kind == "link" else "../gone.txt")
    for check in (
        lambda: check_outputs("output", [folder / "video.mp4"]),
        lambda: check_outputs("output", [folder / "new.mp4"]),
        lambda: check_outputs("output", [folder / "video.mp4"], overwrite=True),
        lambda: check_picture_folder("output", folder),
        lambda: write_picture_folder(pictures(1), folder, "output"),
    ):
        with pytest.raises(ValueError, match=f"`output` must leave the name {RECORD_NAME} to the record"):
            check()
    with pytest.raises(ValueError, match=f"must leave the name {RECORD_NAME}"):
        record_files([folder / "new.mp4"])
    assert names(folder) == [RECORD_NAME, "video.mp4"] and names(tmp_path) == ["folder", "notes.txt"]
    assert (tmp_path / "notes.txt").read_text() == "video.mp4"


def test_a_folder_with_a_picture_s_name_is_refused_and_a_half_written_picture_goes(tmp_path):
    write_picture_folder(pictures(1), tmp_path)
    (tmp_path / f".00001.png.{'0a' * 16}.partial").touch()
    (tmp_path / ".notes.partial").write_text("the user's")
    write_picture_folder(pictures(1), tmp_path)
    assert names(tmp_path) == [RECORD_NAME, ".notes.partial", "00000.png"]
    (tmp_path / "00000.png").unlink()
    (tmp_path / "00000.png").mkdir()
    with pytest.raises(ValueError, match="`output` must be a folder whose numbered PNGs .* with 00000.png"):
        write_picture_folder(pictures(1), tmp_path, "output")


def test_a_picture_beyond_99999_is_the_user_s_too(tmp_path):
    (tmp_path / "100000.png").write_text("the user's")
    with pytest.raises(ValueError, match="with 100000.png, which no run recorded"):
        check_picture_folder("output", tmp_path)
