import os

import pytest
from PIL import Image

from training.media.outputs import RECORD_NAME, check_output, check_picture_folder, write_picture_folder


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
