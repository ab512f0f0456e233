import av
import numpy as np
import pytest
import torch
from PIL import Image

from training import pictures


def picture(color="red", size=(8, 10)):
    return Image.new("RGB", size, color)


def test_a_photo_is_read_as_rgb_and_turned_by_its_exif_data(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # rotate by 90 degrees to see it upright
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


def test_pose_frames_come_in_the_order_of_their_numbers(tmp_path):
    for number in (10, 2, 1):
        picture((number, 0, 0)).save(tmp_path / f"frame_{number}.png")
    (tmp_path / "notes.txt").write_text("not a frame")
    frames = pictures.read_poses(tmp_path)
    assert [frame.getpixel((0, 0))[0] for frame in frames] == [1, 2, 10]


def test_a_stack_of_pictures_equals_the_folder(tmp_path):
    stack = np.random.default_rng(0).integers(0, 25, (3, 6, 4, 3), dtype=np.uint8)
    np.save(tmp_path / "iuv.npy", stack)
    for i, frame in enumerate(stack):
        Image.fromarray(frame).save(tmp_path / f"{i}.png")
    from_stack, from_folder = pictures.read_poses(tmp_path / "iuv.npy"), pictures.read_poses(tmp_path)
    assert [f.tobytes() for f in from_stack] == [f.tobytes() for f in from_folder]


def test_a_stack_of_maps_keeps_its_values_and_shows_u_as_green_and_v_as_red(tmp_path):
    maps = np.zeros((2, 2, 5, 4))
    maps[0, 0], maps[1, 1] = 1.0, 0.5
    np.save(tmp_path / "maps.npy", maps)
    poses = pictures.read_poses(tmp_path / "maps.npy")
    assert poses.dtype == torch.float32 and poses.shape == (2, 2, 5, 4)
    np.testing.assert_array_equal(poses.numpy(), maps)
    shown = pictures.poses_as_pictures(poses)
    assert [p.getpixel((0, 0)) for p in shown] == [(0, 255, 0), (128, 0, 0)]


def test_bad_poses_are_refused(tmp_path):
    with pytest.raises(ValueError, match="`poses` must be a folder of IUV pictures or a .npy file"):
        pictures.read_poses(tmp_path / "missing")
    with pytest.raises(ValueError, match="`poses` must hold IUV pictures"):
        pictures.read_poses(tmp_path)
    picture().save(tmp_path / "0.png")
    picture(size=(8, 12)).save(tmp_path / "1.png")
    with pytest.raises(
        ValueError, match=r"`poses` must have one size, got \(8, 10\) in '0.png' and \(8, 12\) in '1.png'"
    ):
        pictures.read_poses(tmp_path)
    Image.new("L", (8, 10)).save(tmp_path / "1.png")
    with pytest.raises(ValueError, match="`poses` must be RGB pictures .* got mode L"):
        pictures.read_poses(tmp_path)
    (tmp_path / "1.png").write_bytes(b"")
    with pytest.raises(ValueError, match="`poses` must be readable pictures"):
        pictures.read_poses(tmp_path)


@pytest.mark.parametrize(
    "stack",
    [np.zeros((2, 3, 5, 4)), np.full((2, 2, 5, 4), 1.5), np.zeros((0, 2, 5, 4)), np.zeros((5, 4, 3), np.uint8)],
    ids=["channels", "range", "empty", "one frame"],
)
def test_bad_stacks_are_refused(tmp_path, stack):
    np.save(tmp_path / "poses.npy", stack)
    with pytest.raises(ValueError, match=r"`poses` must be uint8 \[F, H, W, 3\] or floats \[F, 2, H, W\]"):
        pictures.read_poses(tmp_path / "poses.npy")


def test_pickled_stacks_are_refused(tmp_path):
    np.save(tmp_path / "poses.npy", np.array([{"a": 1}], dtype=object), allow_pickle=True)
    with pytest.raises(ValueError, match="`poses` must be a plain numpy array"):
        pictures.read_poses(tmp_path / "poses.npy")


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


def test_a_grid_places_its_pictures_and_leaves_empty_cells_white():
    grid = pictures.picture_grid([[None, picture("red")], [picture("green"), picture("blue")]], gap=2)
    assert grid.size == (2 * 8 + 2, 2 * 10 + 2)
    assert [grid.getpixel(p) for p in ((0, 0), (10, 0), (0, 12), (10, 12))] == [
        (255, 255, 255),
        (255, 0, 0),
        (0, 128, 0),
        (0, 0, 255),
    ]
    titled = pictures.picture_grid([[picture()]], ["title"], gap=2)
    assert titled.width == 8 and titled.height > 10
    with pytest.raises(ValueError, match="`rows` must hold pictures of one size"):
        pictures.picture_grid([[picture(), picture(size=(9, 9))]])


def test_enlarging_keeps_a_plain_colour():
    enlarged = pictures.enlarge(picture(), 3)
    assert enlarged.size == (24, 30) and set(enlarged.get_flattened_data()) == {(255, 0, 0)}
