"""Lock on a run's output: it refuses a second process, and it does not outlive a killed one."""

import argparse
import importlib
import os
import signal
import sys

import pytest

from training.engine.output_lock import LOCK_NAME, locked_output, locks_output
from training.engine.session import open_session


if sys.platform == "win32":
    pytest.skip("the other processes are forks", allow_module_level=True)


def run_in_child(function):
    """Run a function in a fork; return its error's message, or ""."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        message = ""
        try:
            function()
        except ValueError as error:
            message = str(error)
        except BaseException as error:
            message = f"{type(error).__name__}: {error}"
        os.write(writer, message.encode())
        os._exit(0)
    os.close(writer)
    os.waitpid(child, 0)
    with os.fdopen(reader) as pipe:
        return pipe.read()


def hold(file):
    with locked_output(file, "output_dir"):
        pass


def test_a_second_process_is_refused_until_the_first_ends(tmp_path):
    file = tmp_path / "run" / LOCK_NAME
    with locked_output(file, "output_dir"):
        for _ in range(2):
            expected = (
                f"`output_dir` must not be in use by another run, got '{file.parent}', where process {os.getpid()}"
            )
            assert run_in_child(lambda: hold(file)).startswith(expected)
    assert not file.parent.exists(), "nothing is left, not even the folder, to which the run did not write"
    with locked_output(file, "output_dir"):
        (file.parent / "log.jsonl").touch()
    assert os.listdir(file.parent) == ["log.jsonl"]
    assert run_in_child(lambda: hold(file)) == ""


def test_the_lock_of_a_killed_process_does_not_stand_in_the_way(tmp_path):
    file = tmp_path / LOCK_NAME
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        with locked_output(file, "output_dir"):
            os.write(writer, b"locked")
            signal.pause()
    os.read(reader, 6)
    try:
        with pytest.raises(ValueError, match=f"where process {child} holds {LOCK_NAME}"):
            hold(file)
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
    assert file.exists()
    hold(file)
    assert os.listdir(tmp_path) == []


def test_a_lock_that_its_owner_removes_meanwhile_is_made_anew(tmp_path, monkeypatch):
    """A process that opened the file before its owner removed it must not lock the removed file."""
    from training.engine import output_lock

    file, lock, opened = tmp_path / LOCK_NAME, output_lock._lock, []

    def lock_after_removal(stream):
        if not opened:
            file.unlink()
        opened.append(stream)
        lock(stream)

    monkeypatch.setattr(output_lock, "_lock", lock_after_removal)
    with locked_output(file, "output_dir"):
        assert len(opened) == 2 and file.exists()
        assert "must not be in use" in run_in_child(lambda: hold(file))


def test_a_second_run_in_one_process_is_refused_until_the_first_ends(tmp_path):
    file = tmp_path / "run" / LOCK_NAME
    (tmp_path / "link").symlink_to("run")
    with locked_output(file, "output_dir"):
        for same in (file, tmp_path / "link" / LOCK_NAME):
            with pytest.raises(ValueError, match=f"`output_dir` must not be in use .* where process {os.getpid()}"):
                hold(same)
        assert "must not be in use" in run_in_child(lambda: hold(file)), "the refused run has freed the lock"
    hold(file)


@pytest.mark.parametrize("kind", ["text", "long number", "link", "link to a number", "dead link", "pipe", "folder"])
def test_what_is_no_lock_is_refused_and_not_touched(tmp_path, kind):
    file, other = tmp_path / LOCK_NAME, tmp_path / "notes.txt"
    other.write_text("1234" if kind == "link to a number" else "the user's")
    if kind.startswith("link"):
        file.symlink_to(other.name)
    elif kind == "dead link":
        file.symlink_to("gone.txt")
    elif kind == "pipe":
        os.mkfifo(file)
    elif kind == "folder":
        file.mkdir()
    else:
        file.write_text("the user's" if kind == "text" else "1" * 30)
    before = [(path.name, path.lstat().st_mode, path.lstat().st_size) for path in sorted(tmp_path.iterdir())]
    text = other.read_text()
    with pytest.raises(ValueError, match=f"`output_dir` must leave the name {LOCK_NAME} to the lock of a run, got '"):
        hold(file)
    after = [(path.name, path.lstat().st_mode, path.lstat().st_size) for path in sorted(tmp_path.iterdir())]
    assert after == before and other.read_text() == text


@pytest.mark.parametrize("is_folder", [True, False])
def test_two_commands_with_one_output(tmp_path, monkeypatch, is_folder):
    """Files of one stem share the strip and the GIF. Only the main process of a launch locks."""
    calls = []

    @locks_output("output", is_folder)
    def main(options):
        return calls.append(options)

    @locks_output("output", is_folder)
    def outer(options):
        same = options if is_folder else argparse.Namespace(output=tmp_path / "video.gif")
        assert "`output` must not be in use by another run" in run_in_child(lambda: main(same))
        assert run_in_child(lambda: main(argparse.Namespace(output=tmp_path / "another.mp4"))) == ""
        monkeypatch.setenv("RANK", "1")
        assert run_in_child(lambda: main(same)) == ""
        return "done"

    assert outer(argparse.Namespace(output=tmp_path / "video.mp4")) == "done" and os.listdir(tmp_path) == []


@pytest.mark.parametrize("name", ["file/below", "a" * 300, "nul\0"])
def test_an_output_that_cannot_be_written_is_left_to_the_command(tmp_path, name):
    (tmp_path / "file").touch()
    main = locks_output("output", True)(lambda options: "ran")
    assert main(argparse.Namespace(output=tmp_path / name)) == "ran" and os.listdir(tmp_path) == ["file"]


def test_two_trainings_in_one_folder(tmp_path):
    def start():
        with open_session(tmp_path, {}):
            pass

    with open_session(tmp_path, {}):
        assert "`output_dir` must not be in use by another run" in run_in_child(start)
    assert os.listdir(tmp_path) == [] and run_in_child(start) == ""


@pytest.mark.parametrize(
    "name",
    [
        "animate",
        "training.convert_original_checkpoint",
        "training.evaluation",
        "training.export_tiny",
        "training.extract_poses",
        "training.prepare_dataset",
    ],
)
def test_commands_refuse_an_output_in_use_before_they_do_anything(tmp_path, name):
    main, output = importlib.import_module(name).main, tmp_path / "out"
    options = argparse.Namespace(
        dry_run=False, output=output, output_dir=output, model_dir=tmp_path / "model", sample_dir=output
    )
    with locked_output(output / LOCK_NAME, "output"), locked_output(tmp_path / ".out.lock", "output"):
        assert "must not be in use by another run" in run_in_child(lambda: main(options))
