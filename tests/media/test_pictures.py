"""Reading and writing pictures and videos, and picture grids."""

import struct

import av
import numpy as np
import pytest
import torch
from PIL import Image

from training.media import pictures


def picture(color="red", size=(8, 10)):
    return Image.new("RGB", size, color)


def test_a_photo_is_read_as_rgb_and_turned_by_its_exif_data(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # viewers rotate it by 90 degrees
    picture(size=(8, 10)).save(tmp_path / "photo.jpg", exif=exif)
    assert pictures.read_photo(tmp_path / "photo.jpg").size == (10, 8)
    Image.new("LA", (4, 4)).save(tmp_path / "gray.png")
    assert pictures.read_photo(tmp_path / "gray.png").mode == "RGB"


def test_unreadable_photos_are_refused(tmp_path):
    with pytest.raises(ValueError, match="`image` must be a file, got .*missing.png"):
        pictures.read_photo(tmp_path / "missing.png")
    (tmp_path / "text.png").write_text("no picture")
    with pytest.raises(ValueError, match="`image` must be a readable picture"):
        pictures.read_photo(tmp_path / "text.png")
    picture(size=(64, 64)).save(tmp_path / "whole.png")
    (tmp_path / "cut.png").write_bytes((tmp_path / "whole.png").read_bytes()[:60])
    with pytest.raises(ValueError, match="`image` must be a readable picture"):
        pictures.read_photo(tmp_path / "cut.png")


def test_a_video_that_a_player_turns_is_turned(tmp_path):
    lying = Image.new("RGB", (64, 48))
    lying.paste("white", (0, 0, 32, 24))  # its left upper quarter
    pictures.write_video([lying] * 2, tmp_path / "lying.mp4")
    data = bytearray((tmp_path / "lying.mp4").read_bytes())
    matrix = struct.pack(
        ">9i", 1 << 16, 0, 0, 0, 1 << 16, 0, 0, 0, 1 << 30
    )  # (a b u, c d v, x y w) in the track header
    start = data.index(matrix, data.index(b"tkhd"))
    # x' = -y + 48, y' = x: a quarter turn clockwise, as written by a phone that is held upright.
    data[start : start + 36] = struct.pack(">9i", 0, 1 << 16, 0, -1 << 16, 0, 0, 48 << 16, 0, 1 << 30)
    (tmp_path / "upright.mp4").write_bytes(data)
    upright = np.asarray(next(pictures.iterate_pictures(tmp_path / "upright.mp4"))).mean(axis=2)
    assert upright.shape == (64, 48)
    assert upright[:28, 28:].min() > 200 and upright[:28, :20].max() < 50 and upright[36:].max() < 50


def test_maps_are_shown_with_u_as_green_and_v_as_red():
    maps = torch.zeros(2, 2, 5, 4)
    maps[0, 0], maps[1, 1] = 1.0, 0.5
    assert [p.getpixel((0, 0)) for p in pictures.poses_as_pictures(maps)] == [(0, 255, 0), (128, 0, 0)]


@pytest.mark.parametrize("encoder", ["libx264", "mpeg4"])
def test_a_video_holds_its_frames_at_even_size(tmp_path, monkeypatch, encoder):
    if encoder == "mpeg4":
        monkeypatch.setattr(pictures, "_video_encoder", lambda: "mpeg4")
    colors = ["red", "green", "blue", "white"]
    pictures.write_video([picture(c, (33, 47)) for c in colors], tmp_path / "new" / "video.mp4", fps=12.5)
    assert [f.name for f in (tmp_path / "new").iterdir()] == ["video.mp4"]
    with av.open(tmp_path / "new" / "video.mp4") as container:
        stream = container.streams.video[0]
        frames = [frame.to_ndarray(format="rgb24") for frame in container.decode(stream)]
        assert float(stream.average_rate) == 12.5 and stream.pix_fmt == "yuv420p"
    assert [frame.shape for frame in frames] == [(48, 34, 3)] * 4
    for frame, color in zip(frames, colors, strict=True):
        assert np.abs(frame.astype(int) - np.array(Image.new("RGB", (1, 1), color))).max() < 12


def test_mpeg4_stands_in_where_libx264_is_missing(monkeypatch):
    assert pictures._video_encoder() in ("libx264", "mpeg4")

    def no_codec(name, mode):
        raise av.codec.codec.UnknownCodecError(name)

    monkeypatch.setattr(av, "Codec", no_codec)
    assert pictures._video_encoder() == "mpeg4"


def test_a_gif_holds_its_frames(tmp_path):
    pictures.write_gif([picture("red"), picture("blue")], tmp_path / "moving.gif", fps=10)
    with Image.open(tmp_path / "moving.gif") as gif:
        assert gif.n_frames == 2 and gif.size == (8, 10) and gif.info["duration"] == 100 and gif.info["loop"] == 0


def test_the_suffix_says_what_frames_become(tmp_path):
    for name in ("a.mp4", "a.gif", "a"):
        pictures.write_frames([picture("red"), picture("blue")], tmp_path / name)
    (tmp_path / "a" / "notes.txt").write_text("kept")
    pictures.write_frames([picture("green")], tmp_path / "a")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "a.gif", "a.mp4"]
    assert sorted(path.name for path in (tmp_path / "a").iterdir()) == ["00000.png", "notes.txt"]
    assert Image.open(tmp_path / "a" / "00000.png").getpixel((0, 0)) == (0, 128, 0)


def test_a_grid_places_its_pictures_and_leaves_empty_cells_white():
    grid = pictures.picture_grid([[None, picture("red")], [picture("green"), picture("blue")]], gap=2)
    assert grid.size == (2 * 8 + 2, 2 * 10 + 2)
    assert [grid.getpixel(p) for p in ((0, 0), (10, 0), (0, 12), (10, 12))] == [
        (255, 255, 255),
        (255, 0, 0),
        (0, 128, 0),
        (0, 0, 255),
    ]
    rows = [[picture("red")], [picture("blue")]]
    labelled = pictures.picture_grid(rows, gap=2, row_titles=["image 1", "image 2"])
    assert labelled.height == 22 and [labelled.getpixel((labelled.width - 1, y)) for y in (0, 21)] == [
        (255, 0, 0),
        (0, 0, 255),
    ]
    assert np.asarray(labelled.crop((0, 0, labelled.width - 8, 22))).min() < 100, "no label is written"
    titled = pictures.picture_grid([[picture()]], ["title"], gap=2)
    assert titled.width == 8 and titled.height > 10
    with pytest.raises(ValueError, match="`rows` must hold pictures of one size"):
        pictures.picture_grid([[picture(), picture(size=(9, 9))]])


def test_enlarging_keeps_a_plain_colour():
    enlarged = pictures.enlarge(picture(), 3)
    assert enlarged.size == (24, 30) and set(enlarged.get_flattened_data()) == {(255, 0, 0)}
