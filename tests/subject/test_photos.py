"""A subject's photos: what is read, how they are paired, and that each target keeps to its own pose."""

import shutil
from collections import Counter

import numpy as np
import pytest
import torch
from PIL import Image

from pipeline_dreampose import fit_image
from tests.tiny_components import get_dummy_image, get_dummy_iuv, save_photo
from training.data.augmentation import to_pixel_values
from training.data.frame_pairs import FramePairs, LatentShape, sample_generator
from training.data.pair_settings import PairSettings
from training.data.procedural_fashion import ProceduralFashionConfig
from training.subject.photos import SubjectPairs, load_photos


SKIN = (200, 80, 120)
WALLS = {"back": (20, 240, 60), "front": (30, 60, 240), "side": (20, 230, 230)}
HEIGHT, WIDTH = 960, 768
# A latent cell for each pixel, so that silhouettes differ by no more than the rounding at their rims.
PIXELS = LatentShape(1, HEIGHT, WIDTH, HEIGHT, WIDTH)


@pytest.fixture(scope="module")
def drawn(tmp_path_factory):
    """Three poses of a drawn figure, one colour where its IUV is and another wall in each, of three aspects."""
    folder = tmp_path_factory.mktemp("drawn")
    for number, (stem, wall) in enumerate(WALLS.items()):
        config = ProceduralFashionConfig(height=720, width=400 + 150 * number)
        iuv = config.clip("test", 0, 0, [5 * number])[0].iuv
        image = np.where(iuv[..., 2:] > 0, np.uint8(SKIN), np.uint8(wall))
        save_photo(folder, stem, Image.fromarray(image), Image.fromarray(iuv))
    return folder


def iou(a, b):
    return (a & b).sum().item() / (a | b).sum().item()


def distance(pixel_values, color):
    return (pixel_values - torch.tensor(color)[:, None, None] / 127.5 + 1).norm(dim=0)


def recognise(pixel_values):
    """Which photo it is, by its wall, and where it is nearer to the skin than to that."""
    shares = {name: (distance(pixel_values[:, ::8, ::8], wall) < 0.1).sum() for name, wall in WALLS.items()}
    name = max(shares, key=shares.get)
    return name, distance(pixel_values, SKIN) < distance(pixel_values, WALLS[name])


@pytest.mark.slow  # large pictures, so that a shift by two pixels shows
@pytest.mark.parametrize("fit", ["whole", "crop"])
def test_each_target_has_its_own_pose_and_its_own_crop(drawn, fit):
    """The silhouettes of target and pose coincide, those of reference and target do not."""
    samples, others = SubjectPairs(load_photos(drawn), PIXELS, 0, PairSettings(fit=fit, min_crop_scale=0.6)), []
    for position in range(9):
        sample = samples[position]
        window = sample["pose_window"].view(5, 2, HEIGHT, WIDTH)
        assert all(torch.equal(window[0], pose) for pose in window), "a photo has no neighbours"
        (_, seen), (_, shown) = (
            recognise(to_pixel_values(sample[f"{name}_image"])) for name in ("reference", "target")
        )
        assert iou(window[0].any(dim=0), shown) >= 0.98
        others.append(iou(seen, shown))
    assert np.mean(others) < 0.8


def test_every_photo_is_reference_and_target_of_every_one(drawn, shape):
    samples, pairs = SubjectPairs(load_photos(drawn), shape, 0, PairSettings(min_crop_scale=0.6)), Counter()
    for position in range(36):
        sample = samples[position]
        pairs[tuple(recognise(to_pixel_values(sample[f"{name}_image"]))[0] for name in ("reference", "target"))] += 1
    assert len(samples) == 3 and len(pairs) == 9
    assert [sum(count for pair, count in pairs.items() if pair[1] == name) for name in WALLS] == [12] * 3


def test_the_first_photo_is_the_only_reference_where_stage_one_took_first_frames(drawn, shape):
    settings, photos = PairSettings(reference_frames="first"), load_photos(drawn)
    samples = SubjectPairs(photos, shape, 0, settings)
    first = samples.read_image(0)
    assert all(torch.equal(samples[position]["reference_image"], first) for position in range(9))
    plain, targets = SubjectPairs(photos, shape, 0, PairSettings()), [samples[p]["target_image"] for p in range(9)]
    assert all(torch.equal(plain[p]["target_image"], target) for p, target in enumerate(targets)), "no draw moves"
    assert len({target.numpy().tobytes() for target in targets}) == 3, "each is a target"


def test_one_photo_makes_pairs_of_two_crops(drawn, tmp_path):
    for name in ("front.png", "front_iuv.png"):
        shutil.copy(drawn / name, tmp_path)
    photos = load_photos(tmp_path)
    samples = SubjectPairs(photos, PIXELS, 0, PairSettings(min_crop_scale=0.6))
    for position in range(4):
        sample = samples[position]
        assert not torch.equal(sample["reference_image"], sample["target_image"])
        (reference, _), (target, shown) = (
            recognise(to_pixel_values(sample[f"{name}_image"])) for name in ("reference", "target")
        )
        assert reference == target == "front" and iou(sample["pose_window"][:2].any(dim=0), shown) >= 0.98
    whole = SubjectPairs(photos, PIXELS, 0, PairSettings())[0]
    assert torch.equal(whole["reference_image"], whole["target_image"])
    assert torch.equal(
        to_pixel_values(whole["target_image"]), fit_image(Image.open(drawn / "front.png"), HEIGHT, WIDTH)
    )


def test_items_are_those_of_stage_one_and_depend_on_seed_and_position_alone(drawn, dataset, shape):
    photos, settings = load_photos(drawn), PairSettings(min_crop_scale=0.6)
    samples, again = (SubjectPairs(photos, shape, 1, settings) for _ in range(2))
    item, stage_one = samples[7], FramePairs(dataset, shape, 1, settings)[7]
    assert {name: value.shape for name, value in item.items()} == {
        name: value.shape for name, value in stage_one.items()
    }
    assert all(torch.equal(value, again[7][name]) for name, value in item.items())
    for other in (samples[10], SubjectPairs(photos, shape, 2, settings)[7]):
        assert not torch.equal(item["noise"], other["noise"])
    # A crop changes no other draw.
    whole = SubjectPairs(photos, shape, 1, PairSettings())[7]
    assert all(torch.equal(item[name], whole[name]) for name in ("noise", "posterior_noise", "timestep_draw"))


def test_the_prior_has_its_share(tmp_path, dataset, shape):
    photos, settings = load_photos(save_photo(tmp_path, "a", get_dummy_image(), get_dummy_iuv())), PairSettings()
    alone, prior = SubjectPairs(photos, shape, 0, settings), FramePairs(dataset, shape, 0)
    mixed = SubjectPairs(photos, shape, 0, settings, prior, 0.25)
    is_prior = []
    for position in range(200):
        item, other = mixed[position], prior[position]
        is_prior.append(torch.equal(item["target_image"], other["target_image"]))
        expected = other if is_prior[-1] else alone[position]
        assert all(torch.equal(value, item[name]) for name, value in expected.items())
    # Rows of the prior that are skipped are counted by nobody: a subject's samples, beside which they lie, have none.
    skipping = FramePairs(dataset, shape, 0, PairSettings(bad_rows="skip"))
    assert mixed[0].keys() == SubjectPairs(photos, shape, 0, settings, skipping, 0.999)[0].keys()
    # 50 of 200 have a standard deviation of 6.1.
    assert 32 <= sum(is_prior) <= 68
    # Whether it is the prior's tells nothing of the sample's own draws.
    timesteps = torch.stack([torch.rand((), generator=sample_generator(0, position)) for position in range(200)])
    assert abs(timesteps[torch.tensor(is_prior)].mean() - 0.5) < 0.15


READ = FramePairs._read


@pytest.mark.parametrize("settings", [PairSettings(), PairSettings(min_crop_scale=0.6)])
def test_targets_alone_are_the_same_and_nothing_else_is_read(drawn, dataset, shape, settings, monkeypatch):
    samples = SubjectPairs(load_photos(drawn), shape, 0, settings, FramePairs(dataset, shape, 0), 0.5)
    alone = samples.targets_alone()
    for position in range(8):
        whole = samples[position]
        assert alone[position].keys() == whole.keys() - {"reference_image", "pose_window"}
        assert all(torch.equal(value, whole[name]) for name, value in alone[position].items())
    read = []
    monkeypatch.setattr(FramePairs, "_read", lambda self, row, column: read.append(column) or READ(self, row, column))
    for position in range(8):
        alone[position]
    assert read == ["image"] * 8


def test_what_a_folder_holds(tmp_path):
    """Names in order, all kinds of files, and a photo turned as its EXIF says."""
    save_photo(tmp_path, "b", get_dummy_image(1), get_dummy_iuv(1), ".JPG")
    save_photo(tmp_path, "a", get_dummy_image(2), get_dummy_iuv(2), ".webp")
    turned = Image.Exif()
    turned[0x0112] = 6  # displayed turned by a quarter
    image = get_dummy_image(3)
    image.save(tmp_path / "c.png", exif=turned)
    get_dummy_iuv(3, *image.size).save(tmp_path / "c_iuv.png")
    (tmp_path / "notes.txt").write_text("")
    photos = load_photos(tmp_path)
    assert photos["video_id"] == ["a", "b", "c"] and photos["frame_index"] == [0, 0, 0]
    assert [row["image"].size == row["iuv"].size for row in photos] == [True] * 3
    assert np.array_equal(photos[2]["image"], image.transpose(Image.Transpose.ROTATE_270))


def write_text(path):
    path.write_text("no picture")


@pytest.mark.parametrize(
    "spoil, message",
    [
        (lambda folder: shutil.rmtree(folder), "`instance_data_dir` must be a folder of photos, got '.*photos'"),
        (
            lambda folder: (folder / "a.png").rename(folder / "b.png"),
            "must hold the photo of each IUV picture, got none for .*a_iuv.png",
        ),
        (
            lambda folder: [path.unlink() for path in folder.iterdir()],
            r"must hold a photo \(.jpg, .*\), got '.*photos'",
        ),
        (lambda folder: (folder / "a_iuv.png").unlink(), "the IUV picture of each photo, got no .*a_iuv.png"),
        (lambda folder: get_dummy_image().save(folder / "a.jpg"), "one photo for each .*, got a.jpg and a.png in"),
        (
            lambda folder: get_dummy_iuv(0, 16, 16).save(folder / "a_iuv.png"),
            r"IUV pictures of their photos' sizes, got \(16, 16\) of .*a_iuv.png for \(24, 32\)",
        ),
        (
            lambda folder: get_dummy_image().save(folder / "a_iuv.png"),
            "must hold IUV pictures, got .*a_iuv.png: .*codes",
        ),
        (
            lambda folder: Image.new("L", (24, 32)).save(folder / "a_iuv.png"),
            "must hold IUV pictures, got .*a_iuv.png: .*mode 'L'",
        ),
        (lambda folder: write_text(folder / "a.png"), "must hold readable pictures, got .*a.png: cannot identify"),
    ],
)
def test_what_is_wrong_with_a_folder_is_said_with_the_file_s_name(tmp_path, spoil, message):
    folder = save_photo(tmp_path / "photos", "a", get_dummy_image(), get_dummy_iuv())
    spoil(folder)
    with pytest.raises(ValueError, match=message):
        load_photos(folder)
