"""Settings that a resumed run must match, and leftovers of killed runs."""

import json
import os
import time

import pytest

from training.media.settings_file import has_settings, read_json, remove_leftovers, write_json, written_whole


def test_settings_must_be_those_of_before(tmp_path):
    path = tmp_path / "run" / "settings.json"
    assert not has_settings(path, {"seed": 1}, "resume")
    write_json(path, {"seed": 1, "steps": [2]})
    assert has_settings(path, {"seed": 1, "steps": [2]}, "resume")
    message = r"`resume` must keep the settings of .*run', got extra None, now 3; seed 1, now 2\."
    with pytest.raises(ValueError, match=message):
        has_settings(path, {"seed": 2, "steps": [2], "extra": 3}, "resume")
    assert json.loads(path.read_text()) == {"seed": 1, "steps": [2]} and os.listdir(path.parent) == [path.name]


def test_processes_of_one_number_do_not_share_a_partial_file(tmp_path, monkeypatch):
    """Like two containers with equal process ids: one writes the file just before the other renames its own."""
    path, replace = tmp_path / "settings.json", os.replace

    def replace_behind_another(partial, final):
        monkeypatch.setattr(os, "replace", replace)
        write_json(path, "another's")
        replace(partial, final)

    monkeypatch.setattr(os, "replace", replace_behind_another)
    write_json(path, "own")
    assert json.loads(path.read_text()) == "own" and os.listdir(tmp_path) == [path.name]


def test_a_partial_file_that_was_left_is_a_leftover(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "replace", lambda partial, final: os.utime(partial, (0, 0)))  # killed, long ago
    write_json(tmp_path / "settings.json", {})
    assert len(os.listdir(tmp_path)) == 1
    remove_leftovers(tmp_path)
    assert os.listdir(tmp_path) == []


def test_only_old_leftovers_are_removed(tmp_path):
    (tmp_path / "deep").mkdir()
    for name in (".a.partial", "deep/.b.partial", "deep/.now.partial", "deep/whole.parquet"):
        (tmp_path / name).write_text("")
        if "now" not in name:
            os.utime(tmp_path / name, (time.time() - 7200,) * 2)
    remove_leftovers(tmp_path)
    remove_leftovers(tmp_path / "none")
    assert sorted(os.listdir(tmp_path / "deep")) == [".now.partial", "whole.parquet"]
    assert os.listdir(tmp_path) == ["deep"]


@pytest.mark.parametrize("content", ["[1]", "5", "null", '"text"', "{", "", "[" * 100_000, "\udcff"])
def test_a_file_without_an_object_is_named(tmp_path, content):
    path = tmp_path / "settings.json"
    path.write_bytes(content.encode("utf-8", "surrogateescape"))
    with pytest.raises(ValueError, match=f"`resume` must hold files that .*, got '{path}', which ") as caught:
        has_settings(path, {"seed": 1}, "resume")
    assert len(str(caught.value)) < 600 and "\n" not in str(caught.value)


def test_a_missing_key_is_named(tmp_path):
    write_json(tmp_path / "record.json", {"sha256": "abc"})
    assert read_json(tmp_path / "record.json", "output_dir", "sha256") == {"sha256": "abc"}
    with pytest.raises(ValueError, match="`output_dir` must hold files .*record.json', which has no `num_frames`"):
        read_json(tmp_path / "record.json", "output_dir", "sha256", "num_frames")


def test_a_file_is_written_whole_or_not_at_all(tmp_path):
    path, leftover = tmp_path / "new" / "a.mp4", f".a.mp4.{'0a' * 16}.partial"
    path.parent.mkdir()
    (path.parent / leftover).write_text("of a killed run")
    (path.parent / f".b.mp4.{'0a' * 16}.partial").write_text("of another file")
    with pytest.raises(KeyError), written_whole(path) as partial:
        assert not (path.parent / leftover).exists()
        partial.write_text("half")
        raise KeyError
    assert [file.name for file in path.parent.iterdir()] == [f".b.mp4.{'0a' * 16}.partial"]
    with written_whole(path) as partial:
        partial.write_text("whole")
        assert not path.exists()
    assert path.read_text() == "whole" and not partial.exists()
