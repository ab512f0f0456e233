"""Trackers receive numbers, strips and videos. The files of TensorBoard and wandb are read back."""

import io
import time

import numpy as np
import pytest
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.summary.writer import event_file_writer

from training.engine import trackers
from training.engine.session import open_session
from training.engine.trackers import installed_trackers, log_animation
from training.media.pictures import write_gif, write_video


@pytest.fixture
def clip(tmp_path):
    """Strip, video and GIF files of a clip of three plain colours."""
    frames = [Image.new("RGB", (16, 24), color) for color in ("red", "lime", "blue")]
    paths = [tmp_path / f"clip{suffix}" for suffix in (".png", ".mp4", ".gif")]
    strip = Image.new("RGB", (48, 24))
    for number, frame in enumerate(frames):
        strip.paste(frame, (16 * number, 0))
    strip.save(paths[0])
    write_video(frames, paths[1])
    write_gif(frames, paths[2])
    return paths


def test_tensorboard_gets_figures_settings_a_strip_and_a_moving_picture(clip, tmp_path):
    settings = {"learning_rate": 1e-5, "report_to": "tensorboard", "ema_decay": None}
    with open_session(tmp_path / "run", settings, report_to="tensorboard") as accelerator:
        accelerator.log({"loss": 0.5}, step=3)
        log_animation(accelerator, "validation/clip", *clip, step=3)
    events = EventAccumulator(str(tmp_path / "run" / "logs" / "dreampose"), {"images": 0}).Reload()
    assert [(event.step, event.value) for event in events.Scalars("loss")] == [(3, 0.5)]
    (strip,) = events.Images("validation/clip_strip")
    assert np.array_equal(
        np.asarray(Image.open(io.BytesIO(strip.encoded_image_string))), np.asarray(Image.open(clip[0]))
    )
    (moving,) = events.Images("validation/clip")
    assert Image.open(io.BytesIO(moving.encoded_image_string)).n_frames == 3
    assert "ema_decay: None" in next((tmp_path / "run" / "logs").rglob("hparams.yml")).read_text()


@pytest.mark.slow
def test_wandb_gets_figures_settings_a_strip_and_a_video(clip, tmp_path, monkeypatch):
    settings = {"MODE": "offline", "SILENT": "true", "CONFIG_DIR": str(tmp_path), "CACHE_DIR": str(tmp_path)}
    for name, value in settings.items():
        monkeypatch.setenv(f"WANDB_{name}", value)
    with open_session(tmp_path / "run", {"learning_rate": 1e-5, "ema_decay": None}, report_to="wandb") as accelerator:
        run = accelerator.trackers[0].run
        assert run.id == (tmp_path / "run" / "wandb_id").read_text()
        accelerator.log({"loss": 0.5}, step=3)
        log_animation(accelerator, "validation/clip", *clip, step=3)
        assert dict(run.config) == {"learning_rate": 1e-5, "ema_decay": "None"}
    (records,) = (tmp_path / "run").rglob("*.wandb")
    # wandb's own process writes the file and may still do so after `finish` returns.
    deadline = time.monotonic() + 60
    names = {b"loss", b"learning_rate", b"validation/clip"}
    while (missing := {name for name in names if name not in records.read_bytes()}) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not missing, f"{records.stat().st_size} bytes without {missing}"
    (strip,), (video,) = (list((tmp_path / "run").rglob(f"media/*/validation/*.{kind}")) for kind in ("png", "mp4"))
    assert np.array_equal(np.asarray(Image.open(strip)), np.asarray(Image.open(clip[0])))
    assert video.read_bytes() == clip[1].read_bytes()


@pytest.fixture
def files_in_order(monkeypatch):
    """Keep TensorBoard's files in order. It sorts them by name, and those of one test differ only in a number without
    leading zeros."""
    monkeypatch.setattr(event_file_writer, "_global_uid", event_file_writer.AtomicCounter(100))


@pytest.mark.usefixtures("files_in_order")
def test_a_run_that_goes_on_is_one_run_in_tensorboard(tmp_path):
    """Killed after step 5 and resumed at step 3: the first records of steps 4 and 5 are gone."""
    for first_step, loss in ((0, 1.0), (3, 2.0)):
        with open_session(tmp_path, {}, report_to="tensorboard", first_step=first_step) as accelerator:
            for step in range(first_step + 1, 6):
                accelerator.log({"loss": loss}, step=step)
    events = EventAccumulator(str(tmp_path / "logs" / "dreampose")).Reload()
    assert [(event.step, event.value) for event in events.Scalars("loss")] == [(1, 1), (2, 1), (3, 1), (4, 2), (5, 2)]


@pytest.mark.usefixtures("files_in_order")
def test_a_run_that_begins_again_is_one_run_in_tensorboard(tmp_path):
    """The run was killed after step 5, before its first checkpoint."""
    for num_steps, loss in ((5, 1.0), (3, 2.0)):
        with open_session(tmp_path, {}, report_to="tensorboard") as accelerator:
            for step in range(1, num_steps + 1):
                accelerator.log({"loss": loss}, step=step)
    events = EventAccumulator(str(tmp_path / "logs" / "dreampose")).Reload()
    assert [(event.step, event.value) for event in events.Scalars("loss")] == [(1, 2), (2, 2), (3, 2)]


def test_a_run_that_goes_on_has_its_id_at_wandb(tmp_path):
    new, going_on, another = (
        trackers.tracker_arguments(["wandb"], tmp_path / "run", step)["wandb"] for step in (0, 3, 0)
    )
    assert new == going_on == {"dir": str(tmp_path / "run"), "id": new["id"], "resume": "allow"}
    assert another["id"] != new["id"] == going_on["id"]


def test_without_trackers_nothing_is_written(tmp_path, clip):
    with open_session(tmp_path / "run", {}) as accelerator:
        log_animation(accelerator, "validation/clip", *clip, step=3)
    assert not (tmp_path / "run").exists()


def test_what_is_not_installed_is_refused(monkeypatch):
    monkeypatch.setattr(trackers, "find_spec", lambda name: None if name == "wandb" else object())
    assert installed_trackers("all") == ["tensorboard"] and installed_trackers(None) == []
    with pytest.raises(ValueError, match="`report_to` must be one of tensorboard, wandb that is installed .* 'wandb'"):
        installed_trackers("wandb")


def test_a_tracker_that_does_not_start_ends_in_one_line(tmp_path, monkeypatch):
    wandb = pytest.importorskip("wandb")

    def fail(**arguments):
        raise wandb.errors.UsageError("No API key configured.\nUse `wandb login` to log in.")

    monkeypatch.setattr(wandb, "init", fail)
    rule = "`report_to` must be a tracker that can be started, got wandb: No API key configured. Use `wandb login`"
    with pytest.raises(ValueError, match=rule):
        with open_session(tmp_path, {}, report_to="wandb"):
            pass
    with open_session(tmp_path, {}):
        pass  # the lock is free
