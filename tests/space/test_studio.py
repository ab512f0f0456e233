"""The page's model: one video at a time, and code that makes a video again."""

import pickle

import numpy as np
import pytest
import torch
from huggingface_hub.errors import LocalEntryNotFoundError
from PIL import Image

from model_card.space import figures, subjects
from model_card.space.studio import Settings, Studio, write_result
from model_card.space.uploads import Material
from tests.launch import ROOT
from tests.space.again import run_again
from training.media import animation
from training.media.outputs import write_frame
from training.media.pictures import iterate_pictures


MODEL = "model_card/tiny"
PERSON, MOTION = "Blue skirt", "Turn round"
SETTINGS = Settings(False, 2, 1.5, 2.0, 7)


@pytest.fixture(scope="module")
def studio():
    return Studio(str(ROOT / MODEL), "cpu")


def test_another_video_ends_one_that_was_left_and_frees_its_scheduler(studio):
    photo, poses = figures.photo(PERSON), figures.poses(PERSON, MOTION)
    left = studio.frames(photo, poses, SETTINGS, chunk_size=2)
    next(left)
    whole = list(studio.frames(photo, poses, SETTINGS, chunk_size=8))
    assert len(whole) == len(poses) and len(list(left)) == 0


@pytest.mark.parametrize(
    "name, value, message",
    [
        ("num_inference_steps", 0, "`steps` must be a whole number from 1 to 100"),
        ("num_inference_steps", 101, "`steps` must be"),
        ("num_inference_steps", 2.5, "`steps` must be"),
        ("seed", -1, "`seed` must be"),
        ("image_guidance_scale", float("nan"), "`image_guidance_scale` must be"),
    ],
)
def test_bad_settings_are_refused_and_the_device_stays_free(studio, name, value, message):
    photo, poses = figures.photo(PERSON), figures.poses(PERSON, MOTION)[:2]
    with pytest.raises(ValueError, match=message):
        list(studio.frames(photo, poses, Settings(**{**vars(SETTINGS), name: value})))
    assert len(list(studio.frames(photo, poses, SETTINGS))) == 2


@pytest.mark.slow
@pytest.mark.parametrize("few, maps", [(False, True), (True, False)], ids=["full-maps", "few-pictures"])
def test_the_code_of_a_result_makes_exactly_its_frames_and_its_video(studio, few, maps, tmp_path, monkeypatch):
    """Both run as printed, in a folder that looks like a clone with the download unpacked."""
    if few and not studio.has_few:
        pytest.skip("the small model has no few-step LoRA in this checkout")
    photo, poses = figures.photo(PERSON), figures.poses(PERSON, MOTION)[:9]
    if maps:
        poses = torch.from_numpy(np.stack(poses)).permute(0, 3, 1, 2)[:, [1, 0]].float() / 255
    settings = Settings(few, 1, 1.0, 1.0, 3) if few else SETTINGS
    (tmp_path / "frames").mkdir()
    frames = list(studio.frames(photo, poses, settings))
    for index, frame in enumerate(frames):
        write_frame(frame, animation.frame_path(tmp_path / "frames", index))
    monkeypatch.setattr(studio, "model", MODEL)
    archive = write_result(tmp_path, studio, Material(photo, poses, 12.5), frames, settings)

    clone = run_again(archive, tmp_path / "clone")
    for index, frame in enumerate(frames):
        assert np.array_equal(Image.open(clone / f"{index}.png"), frame)
    first, second = (list(iterate_pictures(clone / path)) for path in ("dreampose/video.mp4", "video.mp4"))
    assert len(first) == len(second) == len(frames)
    assert all(np.array_equal(a, b) for a, b in zip(first, second))


def test_the_function_that_samples_is_the_one_that_asks_for_a_gpu():
    """ZeroGPU gives a GPU while the decorated function runs, in a process of its own, to which arguments are sent."""
    calls = []

    def on_gpu(function):
        def decorated(*arguments):
            calls.append(pickle.loads(pickle.dumps(arguments)))
            yield from function(*arguments)

        return decorated

    studio = Studio(str(ROOT / MODEL), "cpu", on_gpu)
    poses = figures.poses(PERSON, MOTION)[:2]
    assert len(list(studio.frames(figures.photo(PERSON), poses, SETTINGS))) == 2
    assert len(calls) == 1 and calls[0][2:] == (SETTINGS, 8)


@pytest.mark.parametrize("subject", ["model_card/tiny/fast", "/etc/passwd", "anna", "../../someone/anna", "a b/c", 3])
def test_a_subject_that_is_no_id_is_refused_without_a_look_at_the_disk_or_the_hub(subject, monkeypatch):
    monkeypatch.setattr(subjects, "hf_hub_download", lambda **_: pytest.fail("the Hub was asked"))
    with pytest.raises(ValueError, match="`subject` must be the Hub id of a public subject"):
        with subjects.fetched_subject(subject):
            pass


def test_a_folder_of_the_name_of_a_subject_is_not_read(tmp_path, monkeypatch):
    """The name is looked up on the Hub, without the owner's token."""
    asked = []

    def download(**what):
        asked.append(what)
        raise LocalEntryNotFoundError("not on the Hub")

    monkeypatch.setattr(subjects, "hf_hub_download", download)
    monkeypatch.chdir(ROOT)
    with pytest.raises(ValueError, match="got model_card/tiny, which has no pytorch_lora_weights.safetensors"):
        with subjects.fetched_subject("model_card/tiny"):
            pass
    assert [(what["repo_id"], what["token"], what["dry_run"]) for what in asked] == [("model_card/tiny", False, True)]


def test_only_the_subject_of_the_last_visitor_stays_in_memory(studio, monkeypatch):
    monkeypatch.setattr(studio, "_load", lambda few, subject: (few, subject))
    monkeypatch.setattr(studio, "_pipelines", {(False, ""): "full"})
    for subject in ("someone/anna", "someone/bob"):
        assert studio.pipeline(False, subject) == (False, subject)
    assert studio.pipeline(False) == "full" and set(studio._pipelines) == {(False, ""), (False, "someone/bob")}
