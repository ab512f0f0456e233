"""What a visitor uploads, and the limits of it."""

from fractions import Fraction

import av
import numpy as np
import pytest
import torch
from PIL import Image

from model_card.space import dances, uploads
from tests.densepose_exports import TupleExport
from tests.launch import ROOT
from training.data.procedural_fashion import ProceduralFashionConfig


SAMPLE = ROOT / "model_card" / "sample"
PHOTO, POSES = SAMPLE / "photo.png", sorted((SAMPLE / "poses").glob("*.png"))


def read(photo, poses=None, photo_iuv=None, dance=None, reader=None):
    upload = uploads.Upload(photo, poses, photo_iuv, dance, reader)
    assert list(upload.find_poses()) == list(range(1, len(upload._found) + 1))
    return upload.read()


def write_video(path, frames, codec="ffv1", pixel_format="bgr0", rate=12):
    with av.open(path, "w") as container:
        stream = container.add_stream(codec, rate=rate)
        stream.width, stream.height, stream.pix_fmt = *frames[0].size, pixel_format
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_image(frame)))
        container.mux(stream.encode())


def test_pictures_an_array_and_a_lossless_video_give_the_same_poses(tmp_path):
    frames = [Image.open(path).convert("RGB") for path in POSES[:5]]
    np.save(tmp_path / "poses.npy", np.stack(frames))
    write_video(tmp_path / "poses.mkv", frames, rate=25)
    # Browsers may send files in any order.
    for given, fps in ((POSES[:5][::-1], 12), ([tmp_path / "poses.npy"], 12), ([tmp_path / "poses.mkv"], 25)):
        material = read(PHOTO, given)
        assert np.array_equal(material.photo, Image.open(PHOTO).convert("RGB")) and material.fps == fps
        assert len(material.poses) == 5
        assert all(np.array_equal(pose, frame) for pose, frame in zip(material.poses, frames))


def refused(photo=PHOTO, poses=POSES[:2], photo_iuv=None, dance=None, reader=None):
    """Return the message of a refused upload, which must name no folder of this machine."""
    with pytest.raises(ValueError) as caught:
        read(photo, poses, photo_iuv, dance, reader)
    message = str(caught.value)
    assert not any(word in message for word in ("/tmp", str(ROOT), "dreampose-")), message
    return message


def test_an_iuv_picture_of_the_photo_moves_the_poses_onto_its_body(tmp_path):
    """Poses of the photo itself, drawn smaller and elsewhere, come back to where the photo's body is."""
    iuv = Image.open(SAMPLE / "photo_iuv.png").convert("RGB")
    small = Image.new("RGB", iuv.size)
    small.paste(iuv.resize((iuv.width // 2, iuv.height // 2), Image.Resampling.NEAREST), (3, 20))
    small.save(tmp_path / "0.png")
    (pose,) = read(PHOTO, [tmp_path / "0.png"], SAMPLE / "photo_iuv.png").poses
    assert pose.size == iuv.size
    body, moved = (np.asarray(picture)[..., 2] > 0 for picture in (iuv, pose))
    before = np.asarray(small)[..., 2] > 0
    assert (body & moved).sum() / (body | moved).sum() > 0.7 > 2 * (body & before).sum() / (body | before).sum()


def test_a_photo_s_iuv_picture_that_is_none_is_refused(tmp_path):
    assert "`photo_iuv` must hold part codes" in refused(photo_iuv=PHOTO)
    other = Image.open(SAMPLE / "photo_iuv.png").convert("RGB").resize((256, 320), Image.Resampling.NEAREST)
    other.save(tmp_path / "other.png")
    size = Image.open(PHOTO).size
    assert f"`photo_iuv` must have the size of the photo, {size} pixels" in refused(photo_iuv=tmp_path / "other.png")
    Image.new("RGB", size).save(tmp_path / "nobody.png")
    assert "photo_iuv" in refused(photo_iuv=tmp_path / "nobody.png")
    Image.new("RGB", (4001, 4000)).save(tmp_path / "larger.png")
    assert "`photo_iuv` must have at most 16 million pixels" in refused(photo_iuv=tmp_path / "larger.png")


def test_poses_that_would_be_too_large_on_the_photo_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(uploads, "MAX_ALIGNED_PIXELS", 1_000_000)
    np.save(tmp_path / "maps.npy", np.zeros((240, 2, 8, 8), np.float32))
    message = refused(poses=[tmp_path / "maps.npy"], photo_iuv=SAMPLE / "photo_iuv.png")
    assert "at most 1 million pixels times the number of poses, got 4915200 pixels for 240 poses" in message


def test_frames_that_are_larger_than_a_video_says_are_counted_as_they_are(tmp_path, monkeypatch):
    with av.open(tmp_path / "bomb.mov", "w") as container:
        stream = container.add_stream("png", rate=12)
        stream.width, stream.height, stream.pix_fmt = 32, 32, "rgb24"
        for size in (32, 2000):
            encoder = av.CodecContext.create("png", "w")
            encoder.width, encoder.height, encoder.pix_fmt, encoder.time_base = size, size, "rgb24", Fraction(1, 12)
            frame = av.VideoFrame.from_image(Image.new("RGB", (size, size)))
            frame.pts = size > 32
            for packet in [*encoder.encode(frame), *encoder.encode()]:
                packet.stream = stream
                container.mux(packet)
    with av.open(tmp_path / "bomb.mov") as container:
        assert container.streams.video[0].width == 32
        assert [frame.width for frame in container.decode(video=0)] == [32, 2000]
    monkeypatch.setattr(uploads, "MAX_POSE_PIXELS", 1_000_000)
    monkeypatch.setattr(uploads, "read_poses", None)
    assert "`poses` must" in refused(poses=[tmp_path / "bomb.mov"])


def test_missing_files_are_named():
    assert "`photo` must be a picture" in refused(photo=None)
    assert "`poses` must be IUV pictures" in refused(poses=[])


def test_what_is_no_picture_is_refused(tmp_path):
    text = tmp_path / "photo.png"
    text.write_text("#!/bin/sh\nrm -rf /\n")
    assert "`photo` must be a readable picture" in refused(photo=text)
    assert "`poses` must be a readable picture (PNG, JPEG or WebP), got photo.png" in refused(poses=[text])
    svg = tmp_path / "photo.svg"
    svg.write_text('<svg xmlns="http://www.w3.org/2000/svg"><image href="file:///etc/passwd"/></svg>')
    assert "`photo` must be a readable picture" in refused(photo=svg)
    Image.open(PHOTO).save(tmp_path / "lossy.jpg")
    assert "lossy pictures" in refused(poses=[tmp_path / "lossy.jpg"])
    Image.open(PHOTO).convert("RGB").save(tmp_path / "colours.png")
    assert "part codes" in refused(poses=[tmp_path / "colours.png"])
    np.save(tmp_path / "object.npy", np.array([{}]), allow_pickle=True)
    assert "plain numpy array" in refused(poses=[tmp_path / "object.npy"])


def test_a_lossy_video_is_refused(tmp_path):
    write_video(tmp_path / "dance.mp4", [Image.open(PHOTO).convert("RGB")] * 3, "mpeg4", "yuv420p")
    assert "lossless RGB codec" in refused(poses=[tmp_path / "dance.mp4"])


def test_sizes_are_limited_before_anything_is_decoded(tmp_path, monkeypatch):
    monkeypatch.setattr(uploads, "read_photo", None)
    monkeypatch.setattr(uploads, "read_poses", None)
    Image.new("RGB", (4001, 4000)).save(tmp_path / "large.png")
    assert "`photo` must have at most 16 million pixels" in refused(photo=tmp_path / "large.png")
    monkeypatch.setattr(uploads, "read_photo", lambda path, name: Image.open(path))
    assert "`poses` must have at most 240 frames" in refused(poses=[POSES[0]] * 241)
    assert "with different names, got 0000.png twice" in refused(poses=[POSES[0]] * 2)
    many = []
    for index in range(5):
        many.append(tmp_path / f"{index}.png")
        (tmp_path / "large.png").rename(many[-1]) if index == 0 else many[-1].write_bytes(many[0].read_bytes())
    assert "64 million pixels" in refused(poses=many)
    np.save(tmp_path / "long.npy", np.zeros((241, 8, 8, 3), np.uint8))
    assert "got 241 frames" in refused(poses=[tmp_path / "long.npy"])
    write_video(tmp_path / "long.mkv", [Image.new("RGB", (32, 32))] * 241)
    assert "got 241 frames" in refused(poses=[tmp_path / "long.mkv"])
    monkeypatch.setattr(uploads, "MAX_BYTES", 1000)
    assert "`photo` must have at most 0 MB" in refused()


@pytest.fixture(scope="module")
def reader(tmp_path_factory):
    """A DensePose that returns the middle of a picture as it is."""
    path = tmp_path_factory.mktemp("densepose") / "model.pt"
    torch.jit.script(TupleExport()).save(path)
    return dances.DanceReader(str(path), "cpu")


@pytest.fixture(scope="module")
def drawn():
    return [Image.fromarray(frame.iuv) for frame in ProceduralFashionConfig().clip("test", 0, 0, range(6))]


def test_a_dance_gives_its_poses_at_about_the_page_s_rate_on_the_photo_s_body(tmp_path, reader, drawn):
    write_video(tmp_path / "dance.mkv", [frame for frame in drawn for _ in range(2)], rate=25)
    photo = drawn[0]  # in which this DensePose finds a body
    photo.save(tmp_path / "photo.png")
    for _ in range(2):  # the second time, what was found for the preview is used again
        material = read(tmp_path / "photo.png", dance=tmp_path / "dance.mkv", reader=reader)
        assert material.fps == 12.5 and len(material.poses) == len(drawn)
        for pose, frame in zip(material.poses, drawn):
            body, found = (np.asarray(picture)[2:78, 4:60, 2] > 0 for picture in (frame, pose))
            assert (body & found).sum() > 0.9 * (body | found).sum()


def test_what_is_no_dance_is_refused(tmp_path, reader, drawn, monkeypatch):
    write_video(tmp_path / "dance.mkv", drawn)
    dance = {"dance": tmp_path / "dance.mkv", "poses": None}
    assert "`dance` must be left out" in refused(**dance)
    assert "`dance` must be given without `poses`" in refused(dance=tmp_path / "dance.mkv", reader=reader)
    black = Image.new("RGB", drawn[0].size)
    black.save(tmp_path / "black.png")
    assert "`photo` must show a person" in refused(**dance, photo=tmp_path / "black.png", reader=reader)
    write_video(tmp_path / "nobody.mkv", [black] * 7)
    assert "finds nobody" in refused(poses=None, dance=tmp_path / "nobody.mkv", reader=reader)
    (tmp_path / "text.mp4").write_text("no video")
    text = {"poses": None, "dance": tmp_path / "text.mp4"}
    assert "`dance` must be a readable video, got text.mp4" in refused(**text, reader=reader).replace("'", "")
    monkeypatch.setattr(uploads, "MAX_FRAMES", 3)
    write_video(tmp_path / "long.mkv", drawn[:1] * 4)
    assert "`dance` must have at most 0.25 seconds" in refused(poses=None, dance=tmp_path / "long.mkv", reader=reader)
    monkeypatch.setattr(uploads, "MAX_BYTES", 1_000_000)
    with open(tmp_path / "long.mkv", "ab") as file:
        file.truncate(1_000_001)
    assert "`dance` must have at most 1 MB" in refused(poses=None, dance=tmp_path / "long.mkv", reader=reader)


def test_pictures_that_cost_too_much_to_decode_are_refused(tmp_path):
    picture = Image.new("RGB", (64, 80))
    picture.save(tmp_path / "scans.jpg", progressive=True)
    picture.save(tmp_path / "two.jpg", "MPO", progressive=True, save_all=True, append_images=[picture])
    for name in ("scans.jpg", "two.jpg"):
        data = (tmp_path / name).read_bytes()
        last = data.rindex(b"\xff\xda")
        (tmp_path / name).write_bytes(data[:last] + data[last:-2] * 200 + data[-2:])
        assert f"must be an ordinary JPEG, got {name} with 2" in refused(photo=tmp_path / name)
    picture.save(tmp_path / "tile.tif")
    Image.new("RGB", (1, 100)).save(tmp_path / "thin.png")
    assert "must be PNG, JPEG or WebP, got tile.tif, which is TIFF" in refused(photo=tmp_path / "tile.tif")
    for name in ("photo", "poses", "photo_iuv"):
        value = [tmp_path / "thin.png"] if name == "poses" else tmp_path / "thin.png"
        assert f"`{name}` must have sides of 16 to 1 at most, got 1 x 100" in refused(**{name: value})


def test_gaps_of_numbered_poses_do_not_pass_the_limit(tmp_path, monkeypatch):
    monkeypatch.setattr(uploads, "MAX_FRAMES", 5)
    poses = [tmp_path / f"{number}.png" for number in (0, 1, 4, 7)]
    for path in poses:
        path.write_bytes(POSES[0].read_bytes())
    assert "got 8 frames with those that fill gaps" in refused(poses=poses)
