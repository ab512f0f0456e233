"""Checkpoints on disk: whole or not at all, found, rotated, and safe from full disks and stubborn shares."""

import errno
import json
import os
import shutil
import stat

import pytest
import torch
from safetensors import SafetensorError
from torch import nn

from training.engine import checkpoints
from training.engine.checkpoints import (
    checkpoint_name,
    checkpoint_step,
    collect_module_tensors,
    find_checkpoint_fault,
    find_latest_checkpoint,
    list_checkpoints,
    load_checkpoint,
    resolve_checkpoint,
    restore_tensors,
    rotate_checkpoints,
    save_checkpoint,
    starting_state,
)


def save(output_dir, global_step, value=1.0):
    return save_checkpoint(output_dir, global_step, {"model": {"weight": torch.full((3, 2), value)}}, {"note": "kept"})


def break_file(path):
    file = path / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-4])


def scramble_file(path):
    file = path / "model.safetensors"
    file.write_bytes(b"\xff" * file.stat().st_size)


def test_names_and_steps_are_inverse_and_sort():
    steps = [0, 7, 123, 99999, 1234567]
    assert checkpoint_name(123) == "checkpoint-000123"
    assert [checkpoint_step(checkpoint_name(step)) for step in steps] == steps
    assert sorted(checkpoint_name(step) for step in steps[:-1]) == [checkpoint_name(step) for step in steps[:-1]]
    assert checkpoint_step("checkpoint-best") is None and checkpoint_step("000123") is None
    with pytest.raises(ValueError, match="`global_step` must be at least 0, got -1"):
        checkpoint_name(-1)


def test_what_is_saved_is_loaded(tmp_path):
    channels_last = torch.randn(2, 3, 4, 4).to(memory_format=torch.channels_last)
    tensors = {"model": {"a": channels_last, "b": torch.tensor(3, dtype=torch.int64)}, "ema": {"a": torch.randn(5)}}
    path = save_checkpoint(tmp_path / "new" / "folder", 12, tensors, {"seed": 4})
    assert path.name == "checkpoint-000012"
    loaded, state = load_checkpoint(path)
    assert state["global_step"] == 12 and state["seed"] == 4 and state["versions"]["torch"] == torch.__version__
    assert loaded.keys() == tensors.keys()
    for stem, named in tensors.items():
        assert loaded[stem].keys() == named.keys()
        assert all(torch.equal(loaded[stem][name], value) for name, value in named.items())
    # Only the checkpoint is left behind, and nothing in it is pickled.
    assert [entry.name for entry in path.parent.iterdir()] == [path.name]
    assert {entry.suffix for entry in path.iterdir()} == {".safetensors", ".json"}


def test_a_step_saved_again_is_replaced(tmp_path):
    break_file(save(tmp_path, 3))
    path = save(tmp_path, 3, 2.0)
    assert load_checkpoint(path)[0]["model"]["weight"].eq(2).all()
    assert [entry.name for entry in tmp_path.iterdir()] == [path.name]


def test_leftovers_of_a_killed_run_are_swept(tmp_path):
    leftover = tmp_path / ".tmp-checkpoint-000002"
    leftover.mkdir()
    (leftover / "model.safetensors").write_bytes(b"half")
    assert list_checkpoints(tmp_path) == [] and find_latest_checkpoint(tmp_path) is None
    path = save(tmp_path, 4)
    assert [entry.name for entry in tmp_path.iterdir()] == [path.name]


def refuse(monkeypatch, module, name, is_refused):
    """Make a function fail for some paths, as on a network share where another machine has files open."""
    function = getattr(module, name)

    def call(path, *others, **options):
        if is_refused(path):
            raise OSError(errno.EBUSY, "Device or resource busy", str(path))
        return function(path, *others, **options)

    monkeypatch.setattr(module, name, call)


def test_a_leftover_that_does_not_go_is_a_warning(tmp_path, monkeypatch, caplog):
    leftover = tmp_path / ".tmp-checkpoint-000004"
    leftover.mkdir()
    refuse(monkeypatch, shutil, "rmtree", lambda path: path == leftover)
    path = save(tmp_path, 4)  # of the same step
    assert {entry.name for entry in tmp_path.iterdir()} == {path.name, leftover.name}
    assert find_checkpoint_fault(path) is None and f"{leftover} could not be deleted: " in caplog.text


@pytest.mark.parametrize("function", ["rename", "delete"])
def test_an_old_checkpoint_that_does_not_go_is_a_warning(tmp_path, monkeypatch, caplog, function):
    """Either it cannot be renamed, or the renamed folder, no longer a checkpoint, cannot be deleted."""
    paths = [save(tmp_path, step) for step in (1, 2, 3)]
    with monkeypatch.context() as patch:
        if function == "rename":
            refuse(patch, os, "replace", lambda path: path == paths[0])
        else:
            refuse(patch, shutil, "rmtree", lambda path: paths[0].name in path.name)
        gone = [paths[1]] if function == "rename" else paths[:2]
        rotate_checkpoints(tmp_path, 1)
        assert list_checkpoints(tmp_path) == [path for path in paths if path not in gone]
        assert "could not be deleted: " in caplog.text and paths[0].name in caplog.text
    save(tmp_path, 4)
    rotate_checkpoints(tmp_path, 1)
    assert [entry.name for entry in tmp_path.iterdir()] == ["checkpoint-000004"], "the next rotation tries again"


def test_only_what_is_in_the_way_of_a_new_checkpoint_must_go(tmp_path, monkeypatch):
    path = save(tmp_path, 3)
    with monkeypatch.context() as patch:
        refuse(patch, os, "replace", lambda source: source == path)
        with pytest.raises(RuntimeError, match="checkpoint-000003 could not be written .*resource busy"):
            save(tmp_path, 3, 2.0)
    assert load_checkpoint(path)[0]["model"]["weight"].eq(1).all()
    with monkeypatch.context() as patch:
        refuse(patch, shutil, "rmtree", lambda folder: path.name in folder.name)
        save(tmp_path, 3, 2.0)
    assert load_checkpoint(path)[0]["model"]["weight"].eq(2).all(), "it was renamed, though not deleted"


@pytest.mark.parametrize(
    "is_sync_refused, code, is_fatal",
    [
        (stat.S_ISDIR, errno.EINVAL, False),
        (stat.S_ISDIR, errno.ENOTSUP, False),
        (stat.S_ISDIR, errno.EIO, True),
        (stat.S_ISREG, errno.EINVAL, True),
    ],
)
def test_a_mount_may_refuse_to_sync_folders_but_not_files(tmp_path, monkeypatch, is_sync_refused, code, is_fatal):
    fsync = os.fsync

    def refuse_some(descriptor):
        if is_sync_refused(os.fstat(descriptor).st_mode):
            raise OSError(code, os.strerror(code))
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", refuse_some)
    if is_fatal:
        with pytest.raises(RuntimeError, match=f"could not be written .*{os.strerror(code)}"):
            save(tmp_path, 1)
    else:
        assert find_checkpoint_fault(save(tmp_path, 1)) is None


@pytest.mark.parametrize(
    "damage, reason",
    [
        (break_file, "model.safetensors has"),
        (lambda path: (path / "model.safetensors").unlink(), "FileNotFoundError"),
        (lambda path: (path / "state.json").unlink(), "FileNotFoundError"),
        (lambda path: (path / "state.json").write_text("{"), "JSONDecodeError"),
        (lambda path: (path / "state.json").write_text("[]"), "state.json must hold one object, got []"),
        (scramble_file, "SafetensorError"),
    ],
)
def test_a_broken_checkpoint_is_skipped_and_named(tmp_path, caplog, damage, reason):
    older, newer = save(tmp_path, 1), save(tmp_path, 2)
    assert find_latest_checkpoint(tmp_path) == newer and not caplog.records
    damage(newer)
    assert reason in find_checkpoint_fault(newer)
    assert find_latest_checkpoint(tmp_path) == older
    assert str(newer) in caplog.text and reason in caplog.text
    with pytest.raises(ValueError, match="`path` must be a whole checkpoint, got .*000002"):
        load_checkpoint(newer)


def test_rotation_keeps_the_newest_whole_ones(tmp_path):
    paths = [save(tmp_path, step) for step in (1, 2, 3, 4)]
    break_file(paths[3])
    for limit, num_deleted in ((None, 0), (2, 1)):
        rotate_checkpoints(tmp_path, limit)
        assert list_checkpoints(tmp_path) == paths[num_deleted:]
    # The broken newest one does not count, so the only whole one is never deleted.
    rotate_checkpoints(tmp_path, 1)
    assert list_checkpoints(tmp_path) == [paths[2], paths[3]]
    assert {entry.name for entry in tmp_path.iterdir()} == {paths[2].name, paths[3].name}
    with pytest.raises(ValueError, match="`checkpoints_total_limit` must be at least 1, got 0"):
        rotate_checkpoints(tmp_path, 0)


def test_resolve_finds_or_refuses(tmp_path):
    assert resolve_checkpoint(tmp_path / "missing", "latest") is None
    assert resolve_checkpoint(tmp_path, None) is None
    first, second = save(tmp_path, 1), save(tmp_path, 2)
    assert resolve_checkpoint(tmp_path, "latest") == second
    assert resolve_checkpoint(tmp_path, str(second)) == second
    assert resolve_checkpoint(tmp_path / "elsewhere", first) == first
    with pytest.raises(ValueError, match="`output_dir` must not hold a checkpoint that .* got .*000002. To continue"):
        resolve_checkpoint(tmp_path, None)
    with pytest.raises(ValueError, match="`output_dir` must not hold a checkpoint that .* got .*000002. To continue"):
        resolve_checkpoint(tmp_path, first)
    with pytest.raises(ValueError, match="`resume_from_checkpoint` must be 'latest' or a whole .*, got 'newest'"):
        resolve_checkpoint(tmp_path, "newest")
    break_file(second)
    assert resolve_checkpoint(tmp_path, first) == first


def test_a_checkpoint_of_another_step_than_in_its_name_is_not_whole(tmp_path, caplog):
    """It would be the newest one, and the log's records after its real step would stay."""
    first, second = save(tmp_path, 1), save(tmp_path, 2)
    copied = shutil.copytree(first, tmp_path / checkpoint_name(9))
    reason = "its name has the step 9, and `global_step` in state.json is 1"
    assert find_latest_checkpoint(tmp_path) == second and reason in caplog.text
    with pytest.raises(ValueError, match=f"`resume_from_checkpoint` must .*{reason}.*older whole .* {second}"):
        resolve_checkpoint(tmp_path, copied)
    rotate_checkpoints(tmp_path, 2)
    assert list_checkpoints(tmp_path) == [first, second, copied], "it does not count as one of two"
    other = shutil.copytree(first, tmp_path / "best")
    assert resolve_checkpoint(tmp_path / "elsewhere", other) == other, "a name without a step says nothing"


def test_an_empty_name_is_not_the_current_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(save(tmp_path, 1))
    with pytest.raises(ValueError, match=r"`resume_from_checkpoint` must .*, got '' \(it is empty\)"):
        resolve_checkpoint(tmp_path / "elsewhere", "")


def test_nothing_starts_anew_where_all_checkpoints_are_broken(tmp_path):
    """A new start would empty the log, and an old checkpoint, once repaired, would count as newer than its own."""
    for step in (1, 2):
        break_file(save(tmp_path, step))
    message = (
        "`output_dir` must hold a whole checkpoint or none at all .*, got only broken ones, the newest"
        r" .*checkpoint-000002 \(model.safetensors has .*\): move them away to start anew, or choose another"
    )
    for find in (find_latest_checkpoint, lambda folder: resolve_checkpoint(folder, "latest")):
        with pytest.raises(ValueError, match=message):
            find(tmp_path)
    assert resolve_checkpoint(tmp_path, None) is None, "an explicit new run still starts"


@pytest.mark.parametrize("error", [OSError(28, "No space left"), SafetensorError("I/O error: No space left")])
def test_a_full_disk_leaves_the_last_checkpoint(tmp_path, monkeypatch, error):
    """The error comes from Python itself, or from safetensors in other words."""
    path = save(tmp_path, 1)

    def fail(tensors, filename):
        filename.write_bytes(b"half")
        raise error

    monkeypatch.setattr(checkpoints, "save_file", fail)
    with pytest.raises(RuntimeError, match="checkpoint-000002 could not be written .*No space left"):
        save(tmp_path, 2)
    assert [entry.name for entry in tmp_path.iterdir()] == [path.name] and find_checkpoint_fault(path) is None


def test_killed_while_writing_leaves_no_checkpoint_of_that_step(tmp_path, monkeypatch):
    path = save(tmp_path, 1)

    def kill(*args, **kwargs):
        raise KeyboardInterrupt  # nothing catches it or cleans up, as after kill -9

    monkeypatch.setattr(checkpoints.json, "dumps", kill)
    with pytest.raises(KeyboardInterrupt):
        save(tmp_path, 2)
    assert find_latest_checkpoint(tmp_path) == path and list_checkpoints(tmp_path) == [path]


class Module(nn.Module):
    def __init__(self):
        super().__init__()
        self.trained = nn.Conv2d(3, 4, 3)
        self.frozen = nn.Linear(2, 2).requires_grad_(False)
        self.scale = nn.Parameter(torch.tensor(2.0))
        self.register_buffer("mean", torch.zeros(2))
        self.register_buffer("scratch", torch.zeros(2), persistent=False)


def test_only_what_trains_is_collected_and_comes_back_in_its_layout():
    module, other = Module().to(memory_format=torch.channels_last), Module()
    assert set(collect_module_tensors(module)) == {"trained.weight", "trained.bias", "scale", "mean"}
    frozen = module.frozen.weight.clone()
    restore_tensors(collect_module_tensors(module), collect_module_tensors(other), "model weights")
    assert torch.equal(module.trained.weight, other.trained.weight) and torch.equal(module.frozen.weight, frozen)
    assert module.trained.weight.is_contiguous(memory_format=torch.channels_last)


def test_tensors_that_do_not_fit_are_refused():
    current = {"a": torch.zeros(2), "b": torch.zeros(3)}
    with pytest.raises(
        ValueError, match="model weights must come from the same kind .* 1 missing and 1 unexpected tensors: b, c and"
    ):
        restore_tensors(current, {"a": torch.zeros(2), "c": torch.zeros(3)}, "model weights")
    with pytest.raises(ValueError, match=r"got `b` of shape \(4,\) for \(3,\)"):
        restore_tensors(current, {"a": torch.ones(2), "b": torch.zeros(4)}, "model weights")
    assert not current["a"].any(), "nothing is copied unless everything fits"


def test_state_is_plain_json(tmp_path):
    path = save(tmp_path, 5)
    state = json.loads((path / "state.json").read_text())
    assert state["global_step"] == 5 and state["note"] == "kept"
    assert state["files"] == {"model.safetensors": (path / "model.safetensors").stat().st_size}


def flip_bit(file, position=-1):
    content = bytearray(file.read_bytes())
    content[position] ^= 1
    file.write_bytes(content)


def test_a_flipped_bit_is_found_and_the_next_older_checkpoint_offered(tmp_path, caplog):
    """The size stays and safetensors reads the file: only the hash tells that a weight has changed."""
    older, newer = save(tmp_path, 1), save(tmp_path, 2)
    flip_bit(newer / "model.safetensors")
    assert "model.safetensors has changed since it was written" in find_checkpoint_fault(newer)
    assert find_latest_checkpoint(tmp_path) == older and str(newer) in caplog.text
    with pytest.raises(ValueError, match=f"000002' .model.*has changed.* The next older whole checkpoint is {older}"):
        resolve_checkpoint(tmp_path, newer)
    with pytest.raises(ValueError, match="`path` must be a whole checkpoint, got .*has changed"):
        load_checkpoint(newer)
    assert resolve_checkpoint(tmp_path, older) == older, "the broken one is not in the way"
    flip_bit(older / "model.safetensors")
    with pytest.raises(ValueError, match=r"has changed since it was written, by its sha256\)\.$"):
        resolve_checkpoint(tmp_path, newer)


def test_every_bit_of_the_state_that_changes_a_value_is_found(tmp_path):
    path = save(tmp_path, 1)
    file = path / "state.json"
    content, state = file.read_bytes(), load_checkpoint(path)[1]
    for position in range(len(content)):
        file.write_bytes(content)
        flip_bit(file, position)
        try:
            is_changed = json.loads(file.read_bytes()) != state
        except ValueError:
            is_changed = True
        is_unhashed = is_changed and b'"sha256"' not in file.read_bytes()
        assert (find_checkpoint_fault(path) is not None) == is_changed or is_unhashed, file.read_text()


def test_a_checkpoint_without_hashes_still_loads(tmp_path):
    path = save(tmp_path, 1)
    state = json.loads((path / "state.json").read_text())
    del state["sha256"]
    (path / "state.json").write_text(json.dumps(state, indent=2) + "\n")
    tensors, loaded = load_checkpoint(path)
    assert tensors["model"]["weight"].eq(1).all() and loaded == state


@pytest.mark.parametrize(
    "name, value",
    [
        *[("global_step", value) for value in ("1", 1.0, True, -1, None, [])],
        *[("num_samples", value) for value in ("4", {}, None)],
        *[("files", value) for value in ([], None, {"model.safetensors": "9"}, {"../model.safetensors": 9})],
        *[("sha256", value) for value in ([], "abc", {"model.safetensors": 1})],
        *[("log_windows", value) for value in ({}, [1], [{"loss": 1}], [{"values": {"loss": 1}}])],
        *[("stream_positions", value) for value in (1, [], [[]], [1], [[1]], [[[1]]], [[["a", 0, 0]]])],
        *[("world", value) for value in ([], None, {"global_batch_size": "4"})],
        *[("optimizer", 1), ("scaler", 1), ("ema_optimization_step", "1")],
    ],
)
def test_a_state_of_another_kind_names_file_and_key(tmp_path, name, value):
    path = save(tmp_path, 1)
    state = json.loads((path / "state.json").read_text())
    (path / "state.json").write_text(json.dumps(state | {name: value}))
    for find in (find_latest_checkpoint, lambda folder: resolve_checkpoint(folder, path)):
        with pytest.raises(ValueError, match=f"`{name}` in state.json must be ") as caught:
            find(tmp_path)
        assert str(path) in str(caught.value) and len(str(caught.value)) < 500


@pytest.mark.parametrize("content", ["5", "null", "[" * 100_000, '{"files": {}}', '{"global_step": 1}', "\xff"])
def test_a_state_that_is_no_object_is_a_broken_checkpoint(tmp_path, content):
    path = save(tmp_path, 1)
    (path / "state.json").write_text(content, encoding="latin-1")
    with pytest.raises(ValueError, match="got only broken ones"):
        find_latest_checkpoint(tmp_path)


def test_a_run_without_its_counts_names_the_key(tmp_path):
    path = save(tmp_path, 1)
    with pytest.raises(ValueError, match=r"got .*checkpoint-000001/state.json without the key `num_samples`"):
        starting_state(tmp_path, path)
