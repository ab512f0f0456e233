"""IUV pictures of a subject's photos by DensePose: beside each photo that has none, and one error for nobody."""

import numpy as np
import pytest
from PIL import Image

from training.data.procedural_fashion import ProceduralFashionConfig
from training.poses.detections import Detection
from training.subject import photos as photo_poses
from training.subject.photos import load_photos, make_iuv_pictures


@pytest.fixture(scope="module")
def drawn():
    """Two IUV pictures of a drawn figure, 80 x 64."""
    return [frame.iuv for frame in ProceduralFashionConfig().clip("test", 0, 0, [0, 8])]


def inside(iuv):
    """What lies within the box of the exports."""
    result = np.zeros_like(iuv)
    result[2:78, 4:60] = iuv[2:78, 4:60]
    return result


def test_missing_pictures_are_made_beside_their_photos_and_others_kept(densepose, drawn, tmp_path, monkeypatch):
    turned = Image.Exif()
    turned[0x0112] = 6  # displayed turned by a quarter
    Image.fromarray(drawn[0]).save(tmp_path / "a.png")
    Image.fromarray(drawn[1]).transpose(Image.Transpose.ROTATE_90).save(tmp_path / "b.png", exif=turned)
    Image.fromarray(drawn[0]).save(tmp_path / "c.png")
    (tmp_path / "c_iuv.png").write_bytes(b"by hand")
    assert make_iuv_pictures(tmp_path, densepose) == [tmp_path / "a_iuv.png", tmp_path / "b_iuv.png"]
    for stem, iuv in zip("ab", drawn):
        made = np.asarray(Image.open(tmp_path / f"{stem}_iuv.png")).astype(int)
        assert np.array_equal(made[..., 2], inside(iuv)[..., 2]) and np.abs(made - inside(iuv)).max() <= 1
    assert (tmp_path / "c_iuv.png").read_bytes() == b"by hand"
    Image.fromarray(drawn[0]).save(tmp_path / "c_iuv.png")
    assert load_photos(tmp_path)["video_id"] == ["a", "b", "c"], "and nothing else is left in the folder"
    assert len(list(tmp_path.iterdir())) == 6

    def refuse(*_):
        raise AssertionError("DensePose is not even loaded")

    monkeypatch.setattr(photo_poses, "DensePoseEstimator", refuse)
    assert make_iuv_pictures(tmp_path, densepose) == []


def test_nobody_in_some_photos_is_one_error_that_names_them(densepose, drawn, tmp_path):
    Image.fromarray(drawn[0]).save(tmp_path / "anna.png")
    for stem in ("empty", "night"):
        Image.new("RGB", (64, 80)).save(tmp_path / f"{stem}.png")
    names = r"\['.*/empty.png', '.*/night.png'\]"
    with pytest.raises(ValueError, match=f"`instance_data_dir` must hold photos of a person; DensePose .* {names}"):
        make_iuv_pictures(tmp_path, densepose)
    assert sorted(path.name for path in tmp_path.glob("*_iuv.png")) == ["anna_iuv.png"], "the others are made"


def test_whose_of_several_people(drawn, tmp_path, monkeypatch):
    """By the rule, which the followed person of a clip is chosen by too."""

    def person_of(side):
        return Detection((0, 0, side, side), np.full((side, side, 3), side, np.uint8), 1 / side)

    people = [person_of(8), person_of(20)]
    monkeypatch.setattr(photo_poses, "DensePoseEstimator", lambda path, device: lambda image: people)
    for person, side in (("largest", 20), ("score", 8)):
        folder = tmp_path / person
        folder.mkdir()
        Image.fromarray(drawn[0]).save(folder / "a.png")
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
def test_what_cannot_be_done_is_said(prepare, model, message, densepose, tmp_path):
    prepare(tmp_path)
    with pytest.raises(ValueError, match=message):
        make_iuv_pictures(tmp_path, model or densepose)
