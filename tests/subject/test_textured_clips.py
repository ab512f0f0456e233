"""Clips that move a subject before training: whose pixels they show, and how samples of them mix with others."""

import datasets
import numpy as np
import pytest
import torch
from PIL import Image

from tests.tiny_components import save_drawn_photos
from training.data.frame_pairs import FramePairs
from training.data.latent_cache import FrameEncoders
from training.data.pair_settings import PairSettings
from training.data.random_crops import to_pixel_values
from training.metrics.warping import inner_body, take_from_photos
from training.options.subject import SubjectOptions
from training.subject import textured_clips as module
from training.subject.crop_cache import CachedSubjectPairs
from training.subject.photos import SubjectPairs, load_photos, open_pairs
from training.subject.textured_clips import textured_clips


GREY = 0.5


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """The front and the back of a drawn figure."""
    folder = tmp_path_factory.mktemp("photos")
    save_drawn_photos(folder, 3, [0, 9])
    return load_photos(folder)


@pytest.fixture
def grey(monkeypatch):
    """The model makes grey frames. The list holds the photo, the poses and the seed of each clip."""
    calls = []

    def sample(pipeline, photo, iuv, frame_indices, size, seed):
        calls.append((photo, iuv, seed))
        return torch.full((len(frame_indices), 3, size[1], size[0]), GREY)

    monkeypatch.setattr(module, "sample_frames", sample)
    return calls


def clips_of(pipeline, photos, dataset, shape, num_clips=2, seed=0):
    prior = FramePairs(dataset, shape, seed)
    pairs = SubjectPairs(photos, shape, seed, PairSettings(min_crop_scale=0.8), prior, 0.5)
    return textured_clips(pipeline, pairs, num_clips, show_progress=False)


def test_a_clip_shows_the_photo_first_and_then_the_poses_of_another_video(photos, dataset, pipeline, shape, grey):
    clips = clips_of(pipeline, photos, dataset, shape)
    assert [len(rows) for rows in clips.videos.values()] == [7, 7], "the photo, and six frames of a video"
    assert len({seed for _, _, seed in grey}) == 2
    poses = [[np.asarray(iuv) for iuv in iuvs] for _, iuvs, _ in grey]
    rows = FramePairs(dataset, shape, 0).videos.values()
    videos = [[np.asarray(dataset[row]["iuv"]) for row in video] for video in rows]
    for shown in poses:
        assert sum(np.array_equal(shown, video) for video in videos) == 1
    for number in (0, 7):
        assert np.array_equal(clips.dataset[number]["image"], photos[0]["image"])
        assert np.array_equal(clips.dataset[number]["iuv"], photos[0]["iuv"])
    sample = clips[0]
    assert torch.equal(to_pixel_values(sample["reference_image"]), clips.read_frame(0)[0]), "never cropped"
    resumed = clips_of(pipeline, photos, dataset, shape)
    assert all(np.array_equal(a["image"], b["image"]) for a, b in zip(clips.dataset, resumed.dataset))


def test_a_frame_has_the_photo_s_pixels_where_their_uv_meets_and_else_the_model_s(photos, pipeline, shape, grey):
    """In the pose of the photo, the inner body is the photo's, and nothing beyond the body is."""
    back = photos.select([1])
    clips = clips_of(pipeline, back, back, shape, num_clips=1)
    frame, truth = (np.asarray(picture).astype(int) for picture in (clips.dataset[1]["image"], back[0]["image"]))
    inner, body = (np.asarray(iuv)[..., 2] > 0 for iuv in (inner_body(back[0]["iuv"]), back[0]["iuv"]))
    assert inner.sum() > 200 and np.array_equal(frame[inner], truth[inner])
    assert (np.abs(frame[~body] - 255 * GREY) <= 1).all()


def test_the_photo_s_outermost_pixels_and_farther_points_are_not_taken(photos, dataset, pipeline, shape, grey):
    clips = clips_of(pipeline, photos, dataset, shape)
    known = [(photo["image"], inner_body(photo["iuv"])) for photo in photos]
    is_near, is_far = 0, 0
    for row in range(1, 7):
        frame = np.asarray(clips.dataset[row]["image"]).astype(int)
        pixels, distance = take_from_photos(known, clips.dataset[row]["iuv"])
        taken = (distance <= 0.1).numpy()
        assert np.abs(frame - 255 * pixels.permute(1, 2, 0).numpy())[taken].max() <= 1
        assert (np.abs(frame[~taken] - 255 * GREY) <= 1).all()
        is_near, is_far = is_near + taken.sum(), is_far + ((distance > 0.1) & (distance < 1)).sum()
    assert is_near > 500 and is_far > 100


def test_a_long_video_gives_several_clips_and_no_more_than_it_has(photos, dataset, pipeline, shape, grey):
    rows = dataset.select(range(3)).map(lambda row, index: {"frame_index": index}, with_indices=True)
    longer = datasets.concatenate_datasets([dataset] * 6).select(range(35))
    longer = longer.map(lambda row, index: {"video_id": "one", "frame_index": index}, with_indices=True)
    clips = clips_of(pipeline, photos, longer, shape, num_clips=9)
    assert sorted(len(rows) for rows in clips.videos.values()) == [1 + 3, 1 + 16, 1 + 16]
    assert len(clips_of(pipeline, photos, rows, shape, num_clips=9).videos) == 1


def sources_of(samples, clips, prior, number=120):
    """Count the samples of each source by their target."""
    sources, found = {"textured": clips, "prior": prior}, {"textured": 0, "prior": 0, "photos": 0}
    for position in range(number):
        target = samples[position]["target_image"]
        same = [n for n, pairs in sources.items() if torch.equal(target, pairs[position]["target_image"])]
        found[same[0] if same else "photos"] += 1
    return found


def test_three_quarters_of_the_subject_s_samples_are_of_the_clips(photos, dataset, pipeline, shape, grey):
    clips, prior = clips_of(pipeline, photos, dataset, shape), FramePairs(dataset, shape, 0)
    samples = SubjectPairs(photos, shape, 0, PairSettings(), prior, 0.5, clips)
    found = sources_of(samples, clips, prior)
    assert abs(found["prior"] - 60) < 18 and abs(found["textured"] - 45) < 18 and abs(found["photos"] - 15) < 12
    alone = samples.targets_alone()
    assert alone.textured is None and samples.textured is clips, "the decoder does not learn its own frames"


def test_the_clips_are_encoded_too(photos, dataset, pipeline, shape, grey):
    clips, prior = clips_of(pipeline, photos, dataset, shape), FramePairs(dataset, shape, 0)
    samples = SubjectPairs(photos, shape, 0, PairSettings(), prior, 0.01, clips)
    pipeline.image_encoder.requires_grad_(False)
    encoders = FrameEncoders(pipeline.vae, pipeline.image_encoder, pipeline.feature_extractor)
    cached = CachedSubjectPairs(samples, encoders, 2, show_progress=False)
    assert len(cached.textured.samples["mean"]) == len(clips) == 14
    shown = sum(
        torch.equal(cached[position]["target_mean"], cached.textured[position]["target_mean"])
        for position in range(120)
    )
    assert abs(shown - 90) < 20, "three quarters on average"


def test_the_model_samples_the_clips(photos, pipeline, shape):
    """The real sampling: frames of the right size, and the pipeline's progress bar as before."""
    pipeline.register_to_config(default_height=shape.pixel_height, default_width=shape.pixel_width)
    pipeline.set_progress_bar_config(desc="mine")
    samples = open_pairs(pipeline, photos, 0, PairSettings(reference_frames="first"), "procedural/smoke", 0.5)
    clips = textured_clips(pipeline, samples, 1, show_progress=False)
    assert {picture.size for picture in clips.dataset["image"]} == {(64, 80)} and len(clips) == 7
    assert pipeline._progress_bar_config["desc"] == "mine" and not pipeline._progress_bar_config.get("disable")


def test_bad_poses_are_left_out_and_gaps_part_a_video(photos, dataset, pipeline, shape, grey):
    def spoil(row):
        is_bad = row["video_id"] == dataset[0]["video_id"]
        return {"iuv": Image.new("RGB", (64, 80), (0, 0, 99)) if is_bad else row["iuv"]}

    spoilt = dataset.map(spoil, features=dataset.features)
    assert len(clips_of(pipeline, photos, spoilt, shape, num_clips=6).videos) == 5
    with pytest.raises(ValueError, match="`prior_dataset` must hold readable IUV pictures"):
        clips_of(pipeline, photos, spoilt.select(range(6)), shape)
    clips = clips_of(pipeline, photos, dataset.select([0, 1, 2, 4, 5]), shape, num_clips=9)
    assert sorted(len(rows) for rows in clips.videos.values()) == [1 + 2, 1 + 3]


def test_pictures_are_shown_whole():
    with pytest.raises(ValueError, match="`num_textured_clips` must go with the `fit` whole, got 2 with crop"):
        SubjectOptions(num_textured_clips=2, fit="crop", prior_dataset="a")
    assert SubjectOptions(num_textured_clips=2, fit="crop").fit == "crop", "without other people there are no clips"
