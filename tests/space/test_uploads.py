"""What a visitor uploads, and the limits of it."""

from fractions import Fraction

import av
import numpy as np
import pytest
from PIL import Image

from model_card.space import uploads
from tests.launch import ROOT


SAMPLE = ROOT / "model_card" / "sample"
PHOTO, POSES = SAMPLE / "photo.png", sorted((SAMPLE / "poses").glob("*.png"))


def write_video(path, frames, codec="ffv1", pixel_format="bgr0"):
    with av.open(path, "w") as container:
        stream = container.add_stream(codec, rate=12)
        stream.width, stream.height, stream.pix_fmt = *frames[0].size, pixel_format
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_image(frame)))
        container.mux(stream.encode())


def test_pictures_an_array_and_a_lossless_video_give_the_same_poses(tmp_path):
    frames = [Image.open(path).convert("RGB") for path in POSES[:5]]
    np.save(tmp_path / "poses.npy", np.stack(frames))
    write_video(tmp_path / "poses.mkv", frames)
    # Browsers may send files in any order.
    for given in (POSES[:5][::-1], [tmp_path / "poses.npy"], [tmp_path / "poses.mkv"]):
        photo, poses = uploads.read_upload(PHOTO, given)
        assert np.array_equal(photo, Image.open(PHOTO).convert("RGB"))
        assert len(poses) == 5 and all(np.array_equal(pose, frame) for pose, frame in zip(poses, frames))


def refused(photo=PHOTO, poses=POSES[:2], photo_iuv=None):
    """Return the message of a refused upload, which must name no folder of this machine."""
    with pytest.raises(ValueError) as caught:
        uploads.read_upload(photo, poses, photo_iuv)
    message = str(caught.value)
    assert not any(word in message for word in ("/tmp", str(ROOT), "dreampose-")), message
    return message


def test_an_iuv_picture_of_the_photo_moves_the_poses_onto_its_body(tmp_path):
    """Poses of the photo itself, drawn smaller and elsewhere, come back to where the photo's body is."""
    iuv = Image.open(SAMPLE / "photo_iuv.png").convert("RGB")
    small = Image.new("RGB", iuv.size)
    small.paste(iuv.resize((iuv.width // 2, iuv.height // 2), Image.Resampling.NEAREST), (3, 20))
    small.save(tmp_path / "0.png")
    _, poses = uploads.read_upload(PHOTO, [tmp_path / "0.png"], SAMPLE / "photo_iuv.png")
    body, moved = np.asarray(iuv)[..., 2] > 0, poses[0].sum(0).numpy() > 0
    assert poses.shape == (1, 2, iuv.height, iuv.width)
    before = np.asarray(small)[..., 2] > 0
    assert (body & moved).sum() / (body | moved).sum() > 0.7 > 2 * (body & before).sum() / (body | before).sum()


def test_a_photo_s_iuv_picture_that_is_none_is_refused(tmp_path):
    assert "`photo_iuv` must hold part codes" in refused(photo_iuv=PHOTO)
    large = Image.open(SAMPLE / "photo_iuv.png").convert("RGB").resize((128, 160), Image.Resampling.NEAREST)
    large.save(tmp_path / "large.png")
    assert "`photo_iuv` must have the size of the photo, (64, 80) pixels" in refused(photo_iuv=tmp_path / "large.png")
    Image.new("RGB", (64, 80)).save(tmp_path / "nobody.png")
    assert "photo_iuv" in refused(photo_iuv=tmp_path / "nobody.png")
    Image.new("RGB", (3000, 3000)).save(tmp_path / "larger.png")
    assert "16 million pixels times" in refused(photo_iuv=tmp_path / "larger.png")


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
    assert "`poses` must be readable IUV pictures, got photo.png" in refused(poses=[text])
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
