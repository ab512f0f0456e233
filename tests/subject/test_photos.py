"""A subject's photos: reading them, the training pairs, and missing IUV pictures made by DensePose."""

import os
import shutil
from collections import Counter

import numpy as np
import pytest
import torch
from PIL import Image

from pipeline_dreampose import fit_image
from tests.odd_pictures import BROKEN_EXIF, REFUSED, forbid_ghostscript
from tests.tiny_components import get_dummy_image, get_dummy_iuv, save_photo
from training.data.frame_pairs import FramePairs, LatentShape, sample_generator
from training.data.pair_settings import PairSettings
from training.data.procedural_fashion import ProceduralFashionConfig
from training.data.random_crops import to_pixel_values
from training.poses.detections import Detection
from training.subject import photos as photos_module
from training.subject.photos import SubjectPairs, load_photos, make_iuv_pictures


SKIN = (200, 80, 120)
WALLS = {"back": (20, 240, 60), "front": (30, 60, 240), "side": (20, 230, 230)}
HEIGHT, WIDTH = 960, 768
# One latent cell per pixel, so that silhouettes differ only by rounding at their edges.
PIXELS = LatentShape(1, HEIGHT, WIDTH, HEIGHT, WIDTH)


@pytest.fixture(scope="module")
def drawn(tmp_path_factory):
    """Three drawn photos of three aspect ratios: a pose in one skin colour, before a wall of its own colour."""
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
    """Return a photo's name, known by its wall, and the pixels that are closer to the skin than to the wall."""
    shares = {name: (distance(pixel_values[:, ::8, ::8], wall) < 0.1).sum() for name, wall in WALLS.items()}
    name = max(shares, key=shares.get)
    return name, distance(pixel_values, SKIN) < distance(pixel_values, WALLS[name])


def recognise_pair(sample):
    return [recognise(to_pixel_values(sample[f"{name}_image"])) for name in ("reference", "target")]


@pytest.mark.slow  # large pictures, so that a shift by two pixels shows
@pytest.mark.parametrize("fit", ["whole", "crop"])
def test_each_target_has_its_own_pose_and_its_own_crop(drawn, fit):
    """The silhouettes of target and pose coincide; those of reference and target do not."""
    samples, others = SubjectPairs(load_photos(drawn), PIXELS, 0, PairSettings(fit=fit, min_crop_scale=0.6)), []
    for position in range(9):
        sample = samples[position]
        window = sample["pose_window"].view(5, 2, HEIGHT, WIDTH)
        assert all(torch.equal(window[0], pose) for pose in window), "a photo has no neighbours"
        (_, seen), (_, shown) = recognise_pair(sample)
        assert iou(window[0].any(dim=0), shown) >= 0.98
        others.append(iou(seen, shown))
    assert np.mean(others) < 0.8


def test_every_photo_is_paired_with_every_photo(drawn, shape):
    samples, pairs = SubjectPairs(load_photos(drawn), shape, 0, PairSettings(min_crop_scale=0.6)), Counter()
    for position in range(36):
        (reference, _), (target, _) = recognise_pair(samples[position])
        pairs[reference, target] += 1
    assert len(samples) == 3 and len(pairs) == 9
    assert [sum(count for pair, count in pairs.items() if pair[1] == name) for name in WALLS] == [12] * 3


def test_the_first_photo_can_be_the_only_reference(drawn, shape):
    settings, photos = PairSettings(reference_frames="first"), load_photos(drawn)
    samples = SubjectPairs(photos, shape, 0, settings)
    first = samples.read_image(0)
    assert all(torch.equal(samples[position]["reference_image"], first) for position in range(9))
    plain, targets = SubjectPairs(photos, shape, 0, PairSettings()), [samples[p]["target_image"] for p in range(9)]
    assert all(torch.equal(plain[p]["target_image"], target) for p, target in enumerate(targets)), "no draw changes"
    assert len({target.numpy().tobytes() for target in targets}) == 3, "each photo is a target"


def test_one_photo_makes_pairs_of_two_crops(drawn, tmp_path):
    for name in ("front.png", "front_iuv.png"):
        shutil.copy(drawn / name, tmp_path)
    photos = load_photos(tmp_path)
    samples = SubjectPairs(photos, PIXELS, 0, PairSettings(min_crop_scale=0.6))
    for position in range(4):
        sample = samples[position]
        assert not torch.equal(sample["reference_image"], sample["target_image"])
        (reference, _), (target, shown) = recognise_pair(sample)
        assert reference == target == "front" and iou(sample["pose_window"][:2].any(dim=0), shown) >= 0.98
    whole = SubjectPairs(photos, PIXELS, 0, PairSettings())[0]
    assert torch.equal(whole["reference_image"], whole["target_image"])
    fitted = fit_image(Image.open(drawn / "front.png"), HEIGHT, WIDTH)
    assert torch.equal(to_pixel_values(whole["target_image"]), fitted)


def test_items_match_stage_one_and_depend_only_on_seed_and_position(drawn, dataset, shape):
    photos, settings = load_photos(drawn), PairSettings(min_crop_scale=0.6)
    samples, again = (SubjectPairs(photos, shape, 1, settings) for _ in range(2))
    item, stage_one = samples[7], FramePairs(dataset, shape, 1, settings)[7]
    assert item.keys() == stage_one.keys() and all(item[name].shape == stage_one[name].shape for name in item)
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
    # Skipped rows of the prior are not counted: the subject's samples in the same batch have no count.
    skipping = FramePairs(dataset, shape, 0, PairSettings(bad_rows="skip"))
    assert mixed[0].keys() == SubjectPairs(photos, shape, 0, settings, skipping, 0.999)[0].keys()
    # 50 of 200 have a standard deviation of 6.1.
    assert 32 <= sum(is_prior) <= 68
    # The choice of the prior is independent of the sample's own draws.
    timesteps = torch.stack([torch.rand((), generator=sample_generator(0, position)) for position in range(200)])
    assert abs(timesteps[torch.tensor(is_prior)].mean() - 0.5) < 0.15


READ = FramePairs._read


@pytest.mark.parametrize("settings", [PairSettings(), PairSettings(min_crop_scale=0.6)])
def test_targets_alone_are_the_same_targets_and_read_nothing_else(drawn, dataset, shape, settings, monkeypatch):
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


def test_photos_of_a_folder(tmp_path):
    """Sorted by name, in several formats, and rotated by their EXIF orientation."""
    save_photo(tmp_path, "b", get_dummy_image(1), get_dummy_iuv(1), ".JPG")
    save_photo(tmp_path, "a", get_dummy_image(2), get_dummy_iuv(2), ".webp")
    turned = Image.Exif()
    turned[0x0112] = 6  # displayed rotated by 90 degrees
    image = get_dummy_image(3)
    image.save(tmp_path / "c.png", exif=turned)
    get_dummy_iuv(3, *image.size).save(tmp_path / "c_iuv.png")
    (tmp_path / "notes.txt").write_text("")
    photos = load_photos(tmp_path)
    assert photos["video_id"] == ["a", "b", "c"] and photos["frame_index"] == [0, 0, 0]
    assert [row["image"].size == row["iuv"].size for row in photos] == [True] * 3
    assert np.array_equal(photos[2]["image"], image.transpose(Image.Transpose.ROTATE_270))


@pytest.mark.parametrize(
    "spoil, message",
    [
        (lambda folder: shutil.rmtree(folder), "`instance_data_dir` must be a folder of photos, got '.*photos'"),
        (lambda folder: (folder / "a.png").rename(folder / "b.png"), "photo of each IUV .*, got none for .*a_iuv.png"),
        (lambda folder: [path.unlink() for path in folder.iterdir()], r"hold a photo \(.jpg, .*\), got '.*photos'"),
        (lambda folder: (folder / "a_iuv.png").unlink(), "the IUV picture of each photo, got no .*a_iuv.png"),
        (lambda folder: get_dummy_image().save(folder / "a.jpg"), "one photo for each .*, got a.jpg and a.png in"),
        (
            lambda folder: get_dummy_iuv(0, 16, 16).save(folder / "a_iuv.png"),
            r"IUV pictures of their photos' sizes, got \(16, 16\) of .*a_iuv.png for \(24, 32\)",
        ),
        (lambda folder: get_dummy_image().save(folder / "a_iuv.png"), "hold IUV pictures, got .*a_iuv.png: .*codes"),
        (
            lambda folder: Image.new("L", (24, 32)).save(folder / "a_iuv.png"),
            "must hold IUV pictures, got .*a_iuv.png: .*mode 'L'",
        ),
        (lambda folder: (folder / "a.png").write_text("no"), "readable pictures, got .*a.png: it is damaged, or in"),
    ],
)
def test_errors_of_a_folder_name_the_file(tmp_path, spoil, message):
    folder = save_photo(tmp_path / "photos", "a", get_dummy_image(), get_dummy_iuv())
    spoil(folder)
    with pytest.raises(ValueError, match=message):
        load_photos(folder)


def test_hidden_files_folders_and_pipes_are_no_photos(tmp_path):
    save_photo(tmp_path, "a", get_dummy_image(), get_dummy_iuv())
    for name in ("._a.png", "._a_iuv.png", ".b.jpg"):
        (tmp_path / name).write_bytes(b"\x00\x05\x16\x07")
    (tmp_path / "c.png").mkdir()
    os.mkfifo(tmp_path / "d.png")
    assert load_photos(tmp_path)["video_id"] == ["a"]


def test_broken_exif_data_of_a_photo_are_ignored(tmp_path, shape):
    image = get_dummy_image()
    image.save(tmp_path / "a.png", exif=BROKEN_EXIF)
    get_dummy_iuv().save(tmp_path / "a_iuv.png", exif=BROKEN_EXIF)
    photos = load_photos(tmp_path)
    assert np.array_equal(photos[0]["image"], image), "the rows can be read too"
    assert "target_image" in SubjectPairs(photos, shape, 0, PairSettings())[0]


@pytest.mark.parametrize("kind", REFUSED)
@pytest.mark.parametrize("name", ["a.png", "a_iuv.png"])
@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_other_formats_and_bombs_are_refused(tmp_path, monkeypatch, name, kind):
    content, message = REFUSED[kind]
    save_photo(tmp_path, "a", get_dummy_image(), get_dummy_iuv())
    (tmp_path / name).write_bytes(content)
    forbid_ghostscript(monkeypatch)
    with pytest.raises(ValueError, match=f"`instance_data_dir` must hold readable pictures, got .*{name}: {message}"):
        load_photos(tmp_path)


def test_densepose_sees_a_photo_as_it_is_trained(tmp_path, monkeypatch):
    """16-bit levels are scaled, and hidden colours are white."""
    seen = []
    monkeypatch.setattr(
        photos_module, "DensePoseEstimator", lambda path, device: lambda image: seen.append(image) or []
    )
    Image.fromarray(np.full((8, 8), 257 * 7, np.uint16)).save(tmp_path / "a.png")
    Image.new("RGBA", (8, 8)).save(tmp_path / "b.png")
    with pytest.raises(ValueError, match="photos of a person"):
        make_iuv_pictures(tmp_path, "model.pt")
    assert [image.getpixel((0, 0)) for image in seen] == [(7, 7, 7), (255, 255, 255)]


@pytest.fixture(scope="module")
def iuvs():
    """Two IUV pictures of a drawn figure, 80 x 64."""
    return [frame.iuv for frame in ProceduralFashionConfig(height=80, width=64).clip("test", 0, 0, [0, 8])]


def inside(iuv):
    """Return the IUV picture inside the box that the fake DensePose finds."""
    result = np.zeros_like(iuv)
    result[2:78, 4:60] = iuv[2:78, 4:60]
    return result


def test_missing_pictures_are_made_and_existing_ones_kept(densepose, iuvs, tmp_path, monkeypatch):
    turned = Image.Exif()
    turned[0x0112] = 6  # displayed rotated by 90 degrees
    Image.fromarray(iuvs[0]).save(tmp_path / "a.png")
    Image.fromarray(iuvs[1]).transpose(Image.Transpose.ROTATE_90).save(tmp_path / "b.png", exif=turned)
    Image.fromarray(iuvs[0]).save(tmp_path / "c.png")
    (tmp_path / "c_iuv.png").write_bytes(b"by hand")
    assert make_iuv_pictures(tmp_path, densepose) == [tmp_path / "a_iuv.png", tmp_path / "b_iuv.png"]
    for stem, iuv in zip("ab", iuvs):
        made = np.asarray(Image.open(tmp_path / f"{stem}_iuv.png")).astype(int)
        assert np.array_equal(made[..., 2], inside(iuv)[..., 2]) and np.abs(made - inside(iuv)).max() <= 1
    assert (tmp_path / "c_iuv.png").read_bytes() == b"by hand"
    Image.fromarray(iuvs[0]).save(tmp_path / "c_iuv.png")
    assert load_photos(tmp_path)["video_id"] == ["a", "b", "c"], "nothing else is left in the folder"
    assert len(list(tmp_path.iterdir())) == 6

    monkeypatch.setattr(photos_module, "DensePoseEstimator", lambda *_: pytest.fail("DensePose must not be loaded"))
    assert make_iuv_pictures(tmp_path, densepose) == []


def test_one_error_names_all_photos_without_a_person(densepose, iuvs, tmp_path):
    Image.fromarray(iuvs[0]).save(tmp_path / "anna.png")
    for stem in ("empty", "night"):
        Image.new("RGB", (64, 80)).save(tmp_path / f"{stem}.png")
    names = r"\['.*/empty.png', '.*/night.png'\]"
    with pytest.raises(ValueError, match=f"`instance_data_dir` must hold photos of a person; DensePose .* {names}"):
        make_iuv_pictures(tmp_path, densepose)
    assert sorted(path.name for path in tmp_path.glob("*_iuv.png")) == ["anna_iuv.png"], "the other picture is made"


def test_the_rule_chooses_one_of_several_people(iuvs, tmp_path, monkeypatch):
    """The same rules choose the person of a clip."""

    def person_of(side):
        return Detection((0, 0, side, side), np.full((side, side, 3), side, np.uint8), 1 / side)

    people = [person_of(8), person_of(20)]
    monkeypatch.setattr(photos_module, "DensePoseEstimator", lambda path, device: lambda image: people)
    for person, side in (("largest", 20), ("score", 8)):
        folder = tmp_path / person
        folder.mkdir()
        Image.fromarray(iuvs[0]).save(folder / "a.png")
        make_iuv_pictures(folder, "model.pt", person=person)
        assert np.asarray(Image.open(folder / "a_iuv.png")).max() == side


@pytest.mark.parametrize(
    "prepare, model, message",
    [
        (lambda folder: None, "model.pt", "`instance_data_dir` must hold a photo"),
        (lambda folder: (folder / "a.png").write_text(""), None, "must hold readable pictures, got .*a.png"),
        (
            lambda folder: Image.new("RGB", (8, 8)).save(folder / "a.png"),
            "no/such.pt",
            "`densepose` must be a TorchScript file, .* got 'no/such.pt', which does not exist",
        ),
    ],
)
def test_errors_of_making_pictures(prepare, model, message, densepose, tmp_path):
    prepare(tmp_path)
    with pytest.raises(ValueError, match=message):
        make_iuv_pictures(tmp_path, model or densepose)
