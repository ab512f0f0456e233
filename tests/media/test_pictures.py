"""Reading and writing pictures and videos, and picture grids."""

import ctypes
import multiprocessing
import os
import re
import struct
from fractions import Fraction

import av
import numpy as np
import pytest
import torch
from PIL import Image

from tests.odd_pictures import BROKEN_EXIF, REFUSED, forbid_ghostscript
from tests.video_server import VideoServer, write_sound
from training.data.video_download import VideoFacts, probe_video
from training.media import pictures
from training.poses.pose_files import read_poses


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


def test_photos_that_viewers_show_are_read(tmp_path):
    for name in ("photo.png", "photo.jpg", "photo.webp"):
        picture().save(tmp_path / name, exif=BROKEN_EXIF)
        assert pictures.read_photo(tmp_path / name).size == (8, 10)
        pictures.copy_without_metadata(tmp_path / name, tmp_path / f"copy_{name}")
        assert Image.open(tmp_path / f"copy_{name}").size == (8, 10)
    for levels, shown in (([0, 100, 255], [0, 100, 255]), ([0, 257 * 7, 65535], [0, 7, 255])):  # 8 and 16 bits
        Image.fromarray(np.array([levels], np.int32)).save(tmp_path / "photo.tif")  # mode I
        assert np.asarray(pictures.read_photo(tmp_path / "photo.tif"))[0].tolist() == [[level] * 3 for level in shown]


@pytest.mark.parametrize("kind", REFUSED)
@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_other_formats_and_bombs_are_refused(tmp_path, monkeypatch, kind):
    content, message = REFUSED[kind]
    path = tmp_path / "photo.png"
    path.write_bytes(content)
    forbid_ghostscript(monkeypatch)
    for argument, read in (
        ("image", lambda: pictures.read_photo(path)),
        ("input", lambda: next(pictures.iterate_pictures(path))),
        ("input", lambda: next(pictures.iterate_pictures(tmp_path))),
        ("picture", lambda: pictures.copy_without_metadata(path, tmp_path / "copy.png")),
    ):
        with pytest.raises(pictures.UnreadablePictures, match=f"`{argument}` must be a readable picture.*{message}"):
            read()


def test_a_file_is_read_by_a_decoder_of_the_list_and_an_address_never(tmp_path, monkeypatch):
    picture(size=(32, 32)).save(tmp_path / "frame.bmp")
    pictures.write_video([picture(size=(32, 32))] * 2, tmp_path / "private.mp4")
    (tmp_path / "list.mp4").write_text("ffconcat version 1.0\nfile private.mp4\n")
    (tmp_path / "hls.mp4").write_text("#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\nprivate.mp4\n#EXT-X-ENDLIST\n")
    os.mkfifo(tmp_path / "pipe.mp4")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    with VideoServer({"a": (tmp_path / "private.mp4").read_bytes()}) as server:
        addresses = [f"{server.base_url}/a.mp4", "file:private.mp4", "concat:private.mp4", "lavfi:testsrc"]
        for name in [*addresses, "list.mp4", "hls.mp4", "pipe.mp4", "missing.mp4"]:
            with pytest.raises(pictures.UnreadablePictures, match="`input` must be a folder or a readable video, got"):
                next(pictures.iterate_pictures(name))
        assert server.requests == []
    (tmp_path / "private.mp4").rename("http:a.mp4")
    assert next(pictures.iterate_pictures("http:a.mp4")).size == (32, 32), "a file with such a name is read"


def test_names_with_odd_digits_are_sorted_and_what_is_no_picture_is_skipped(tmp_path):
    names = ["2.png", "10.png", "²5.png", "٣.png", "frame1.PNG"]
    for name in [*names, "._2.png", ".hidden.png"]:
        picture().save(tmp_path / name, "PNG")
    (tmp_path / "a.png").mkdir()
    os.mkfifo(tmp_path / "b.png")
    assert [file.name for file in pictures.list_files(tmp_path, (".png",))] == ["2.png", "10.png", *sorted(names[2:])]
    assert len(list(pictures.iterate_pictures(tmp_path))) == len(names)
    (tmp_path / "dead.png").symlink_to("gone.png")
    with pytest.raises(pictures.UnreadablePictures, match="`input` must be a file, got .*dead.png"):
        list(pictures.iterate_pictures(tmp_path))


def with_matrix(video, path, a, b, c, d):
    """Write a copy of an mp4 whose display matrix is x' = a x + c y, y' = b x + d y."""
    data = bytearray(video.read_bytes())
    identity = struct.pack(">9i", 1 << 16, 0, 0, 0, 1 << 16, 0, 0, 0, 1 << 30)
    start = data.index(identity, data.index(b"tkhd"))
    data[start : start + 36] = struct.pack(">9i", a << 16, b << 16, 0, c << 16, d << 16, 0, 0, 0, 1 << 30)
    path.write_bytes(data)


QUARTER_TURNS = [(1, 0, 0, 1), (0, 1, -1, 0), (-1, 0, 0, -1), (0, -1, 1, 0)]
MIRRORED = [(-1, 0, 0, 1), (1, 0, 0, -1), (0, 1, 1, 0), (0, -1, -1, 0)]


@pytest.mark.parametrize("matrix", QUARTER_TURNS + MIRRORED)
def test_all_eight_orientations_of_a_video(tmp_path, matrix):
    stored = np.zeros((48, 64), int)
    stored[:24, :16], stored[:24, 16:32] = 250, 120  # no orientation looks like another
    frame = Image.fromarray(stored.astype(np.uint8)).convert("RGB")
    pictures.write_video([frame] * 2, tmp_path / "stored.mp4")
    with_matrix(tmp_path / "stored.mp4", tmp_path / "turned.mp4", *matrix)
    a, b, c, d = matrix
    shown = np.asarray(next(pictures.iterate_pictures(tmp_path / "turned.mp4")).convert("L")).astype(int)
    size = (64, 48) if a else (48, 64)
    assert shown.shape == size[::-1]
    assert probe_video(tmp_path / "turned.mp4") == VideoFacts(30, *size, num_frames=2)
    y, x = np.mgrid[:48, :64]
    new_x, new_y = a * x + c * y, b * x + d * y
    expected = np.zeros(shown.shape, int)
    expected[new_y - new_y.min(), new_x - new_x.min()] = stored
    assert np.abs(shown - expected).mean() < 5


@pytest.mark.parametrize(
    ("name", "codec", "options"),
    [("a.webm", "libvpx-vp9", {}), ("a.webm", "libvpx", {"auto-alt-ref": "0"}), ("a.mov", "png", {})],
)
def test_transparent_videos_are_laid_over_white(tmp_path, name, codec, options):
    pixels = np.zeros((48, 64, 4), np.uint8)
    pixels[:, :32] = (255, 0, 0, 255)
    with av.open(tmp_path / name, "w") as container:
        stream = container.add_stream(codec, rate=30)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "rgba" if codec == "png" else "yuva420p"
        stream.options = options
        for _ in range(3):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgba")))
        container.mux(stream.encode())
    frames = list(pictures.iterate_pictures(tmp_path / name))
    assert len(frames) == 3
    for frame in frames:
        levels = np.asarray(frame).astype(int)
        assert np.abs(levels[8:40, 4:24] - (255, 0, 0)).max() < 20 and levels[8:40, 40:60].min() > 235


@pytest.mark.parametrize("matrix", [(0, 0, 0, 0), (1, 0, 0, 0), (1, 1, 1, 1)])
def test_a_display_matrix_that_leaves_no_area_is_ignored(tmp_path, matrix):
    pictures.write_video([picture(size=(64, 48))] * 2, tmp_path / "stored.mp4")
    with_matrix(tmp_path / "stored.mp4", tmp_path / "turned.mp4", *matrix)
    shown = next(pictures.iterate_pictures(tmp_path / "turned.mp4"))
    stored = next(pictures.iterate_pictures(tmp_path / "stored.mp4"))
    assert shown.size == (64, 48) and shown.tobytes() == stored.tobytes()


@pytest.mark.parametrize(
    ("name", "codec"),
    [
        ("a.mp4", "aac"),
        ("a.mkv", "aac"),
        ("a.wav", "pcm_s16le"),
        ("a.aiff", "pcm_s16be"),
        ("a.ac3", "ac3"),
        ("a.au", "pcm_s16be"),
    ],
)
def test_sound_without_pictures_is_named_as_such(tmp_path, name, codec):
    write_sound(tmp_path / name, codec)
    with pytest.raises(pictures.UnreadablePictures, match=f"got '.*{name}': it has sound, but no pictures"):
        next(pictures.iterate_pictures(tmp_path / name))


def write_stripes(path, codec="libx264", pixel_format="yuv420p", aspect=None, size=(64, 48)):
    """Write two frames that are black at the left and white at the right; return them."""
    pixels = np.zeros((size[1], size[0], 3), np.uint8)
    pixels[:, size[0] // 2 :] = 255
    with av.open(path, "w") as container:
        stream = container.add_stream(codec, rate=25)
        stream.width, stream.height, stream.pix_fmt = *size, pixel_format
        if aspect is not None:
            stream.codec_context.sample_aspect_ratio = aspect
        for _ in range(2):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        container.mux(stream.encode())
    return pixels


@pytest.mark.parametrize(
    ("name", "codec", "pixel_format"),
    [
        *((f"A.{suffix}", "libx264", "yuv420p") for suffix in ("MP4", "Mov", "M4V", "3GP", "MKV", "FLV", "M2TS")),
        ("A.WEBM", "libvpx-vp9", "yuv420p"),
        ("A.AVI", "mpeg4", "yuv420p"),
        ("A.MPG", "mpeg1video", "yuv420p"),
        ("A.WMV", "wmv2", "yuv420p"),
        ("A.GIF", "gif", "rgb8"),
        ("A.APNG", "apng", "rgb24"),
        ("A.NUT", "ffv1", "bgr0"),
    ],
)
def test_a_video_is_read_in_any_usual_container_with_a_suffix_in_any_case(tmp_path, name, codec, pixel_format):
    written = tmp_path / name.lower()
    stripes = write_stripes(written, codec, pixel_format).astype(int)
    for other in (name, "no_suffix"):
        written = written.rename(tmp_path / other)
        frames = [np.asarray(frame).astype(int) for frame in pictures.iterate_pictures(written)]
        assert len(frames) == 2 and all(np.abs(frame - stripes).mean() < 8 for frame in frames)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.mp4", b"hello world\n" * 50),
        ("a.txt", b"hello world\n" * 50),
        ("a.mp4", b""),
        ("a.mkv", b"\x1aE\xdf\xa3" + bytes(200)),
        ("a.png", b"hello world\n" * 50),
    ],
)
def test_what_is_no_video_or_picture_is_refused_in_one_clear_sentence(tmp_path, name, content):
    path = tmp_path / name
    path.write_bytes(content)
    kind = "readable picture" if name == "a.png" else "folder or a readable video"
    expected = f"`input` must be a {kind}, got '{path}': it is damaged, or in none of the formats "
    with pytest.raises(pictures.UnreadablePictures, match=f"^{re.escape(expected)}") as raised:
        next(pictures.iterate_pictures(path))
    assert str(raised.value).count(str(tmp_path)) == 1


def test_a_video_that_breaks_off_is_refused_without_an_error_s_number(tmp_path):
    write_stripes(tmp_path / "a.avi", "mpeg4")
    data = bytearray((tmp_path / "a.avi").read_bytes())
    start = data.index(b"movi")
    data[start + 12 : start + 400] = b"\xff" * 388
    (tmp_path / "a.avi").write_bytes(data)
    with pytest.raises(pictures.UnreadablePictures, match=r"a.avi': it cannot be decoded \(Invalid data found"):
        list(pictures.iterate_pictures(tmp_path / "a.avi"))


@pytest.mark.parametrize("name", ["x" * 300, "x" * 300 + ".png", "x" * 300 + ".mp4", "a\0b", "a\0b.png"])
def test_a_name_that_cannot_exist_is_refused_as_one_that_does_not(name):
    for argument, read in (
        ("image", pictures.read_photo),
        ("input", lambda path: next(pictures.iterate_pictures(path))),
    ):
        with pytest.raises(pictures.UnreadablePictures, match=f"`{argument}` must be a f.*does not exist"):
            read(name)
    pictures.spare_inputs("output", ["video.mp4"], [name])


def test_a_container_outside_the_list_is_named_as_such(tmp_path):
    write_stripes(tmp_path / "a.y4m", "rawvideo")
    with pytest.raises(pictures.UnreadablePictures, match="it is damaged, or in none of the formats apng,asf,avi"):
        next(pictures.iterate_pictures(tmp_path / "a.y4m"))


@pytest.mark.parametrize("name", ["a.mp4", "a.mkv", "a.avi"])
@pytest.mark.parametrize(("aspect", "size"), [((2, 1), (128, 48)), ((16, 11), (93, 48)), ((1, 2), (64, 96))])
def test_a_video_is_shown_with_square_pixels(tmp_path, name, aspect, size):
    """Like browsers, the reader enlarges one side and shrinks none."""
    write_stripes(tmp_path / name, "mpeg4", aspect=Fraction(*aspect))
    frames = list(pictures.iterate_pictures(tmp_path / name))
    assert [frame.size for frame in frames] == [size] * 2
    levels = np.asarray(frames[0].convert("L"))
    assert levels[:, : size[0] // 2 - 4].max() < 30 and levels[:, size[0] // 2 + 4 :].min() > 225
    if name == "a.mp4":
        assert probe_video(tmp_path / name) == VideoFacts(25, *size, num_frames=2)


def test_pixels_are_made_square_before_the_video_is_turned(tmp_path):
    write_stripes(tmp_path / "stored.mp4", aspect=Fraction(2))
    with_matrix(tmp_path / "stored.mp4", tmp_path / "turned.mp4", 0, 1, -1, 0)
    assert next(pictures.iterate_pictures(tmp_path / "turned.mp4")).size == (48, 128)
    assert probe_video(tmp_path / "turned.mp4") == VideoFacts(25, 48, 128, num_frames=2)


def test_a_shape_of_pixels_that_makes_a_frame_huge_is_refused(tmp_path):
    write_stripes(tmp_path / "a.mp4", aspect=Fraction(200), size=(512, 1024))
    with pytest.raises(pictures.UnreadablePictures, match="a frame has [0-9]+ pixels, and the limit is"):
        next(pictures.iterate_pictures(tmp_path / "a.mp4"))


def test_lossless_poses_keep_their_pixels(tmp_path):
    stripes = write_stripes(tmp_path / "iuv.mkv", "ffv1", "bgr0", aspect=Fraction(2))
    frames = read_poses(tmp_path / "iuv.mkv", check_order=False)
    assert [np.asarray(frame).tolist() for frame in frames] == [stripes.tolist()] * 2


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


def noisy_frames(width, height, num_frames):
    noise = np.random.default_rng(0).integers(0, 256, (height // 16, width // 16, 3), dtype=np.uint8)
    return [Image.fromarray(noise).resize((width, height)).rotate(i) for i in range(num_frames)]


@pytest.mark.parametrize("encoder", ["libx264", "mpeg4"])
def test_the_same_frames_give_the_same_file(tmp_path, monkeypatch, encoder):
    if encoder == "mpeg4":
        monkeypatch.setattr(pictures, "_video_encoder", lambda: "mpeg4")
    frames = noisy_frames(256, 320, 12)
    for name in ("a.mp4", "b.mp4"):
        pictures.write_video(frames, tmp_path / name)
    assert (tmp_path / "a.mp4").read_bytes() == (tmp_path / "b.mp4").read_bytes()


M_PERTURB = -6  # of mallopt
LIBC = ctypes.CDLL(None) if os.name == "posix" else None


@pytest.mark.skipif(not hasattr(LIBC, "mallopt"), reason="needs glibc, which can fill new memory with a value")
def test_what_lies_in_new_memory_does_not_change_the_file(tmp_path):
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 255, (6, 8, 3), np.uint8)).resize((33, 47))
    frames, files = [picture.rotate(7 * index) for index in range(12)], set()
    for value in (0, 0x11, 0x55, 0xAA):
        LIBC.mallopt(M_PERTURB, value)
        try:
            pictures.write_video(frames, tmp_path / "a.mp4")
        finally:
            LIBC.mallopt(M_PERTURB, 0)
        files.add((tmp_path / "a.mp4").read_bytes())
    assert len(files) == 1


def write_on_one_core(path):
    os.sched_setaffinity(0, [min(os.sched_getaffinity(0))])
    pictures.write_video(noisy_frames(512, 640, 12), path)


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="needs a process on one core")
def test_two_processes_on_other_numbers_of_cores_give_the_same_file(tmp_path):
    pictures.write_video(noisy_frames(512, 640, 12), tmp_path / "all.mp4")
    process = multiprocessing.get_context("fork").Process(target=write_on_one_core, args=[tmp_path / "one.mp4"])
    process.start()
    process.join(60)
    assert process.exitcode == 0
    assert (tmp_path / "all.mp4").read_bytes() == (tmp_path / "one.mp4").read_bytes()


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


@pytest.mark.parametrize("name", ["moving.gif", "moving.mp4"])
def test_videos_are_never_written_through_a_link(tmp_path, name):
    (tmp_path / "notes.txt").write_text("the user's")
    for link in (name, f".{name}.partial", ".moving.partial.mp4"):
        (tmp_path / link).symlink_to("notes.txt")
    pictures.write_frames([picture("red"), picture("blue")], tmp_path / name)
    assert (tmp_path / "notes.txt").read_text() == "the user's" and not os.path.islink(tmp_path / name)
    assert len(list(pictures.iterate_pictures(tmp_path / name))) == 2


def test_the_suffix_says_what_frames_become(tmp_path):
    for name in ("a.mp4", "a.gif", "a"):
        pictures.write_frames([picture("red"), picture("blue")], tmp_path / name)
    (tmp_path / "a" / "notes.txt").write_text("kept")
    pictures.write_frames([picture("green")], tmp_path / "a")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "a.gif", "a.mp4"]
    assert sorted(path.name for path in (tmp_path / "a").iterdir()) == [".dreampose_frames", "00000.png", "notes.txt"]
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


@pytest.mark.parametrize("name", ["a.mp4", "a.gif"])
def test_a_video_without_frames_is_refused(tmp_path, name):
    with pytest.raises(ValueError, match=r"`frames` must hold at least one frame, got none\.$"):
        pictures.write_frames(iter([]), tmp_path / name)
    assert list(tmp_path.iterdir()) == []


def test_a_frame_larger_than_the_head_of_its_video_says_is_refused_before_it_is_decoded(tmp_path, monkeypatch):
    monkeypatch.setitem(pictures.DECODER_LIMITS, "max_pixels", str(64 * 64))
    with av.open(tmp_path / "grows.mov", "w") as container:
        stream = container.add_stream("png", rate=12)
        stream.width, stream.height, stream.pix_fmt = 64, 64, "rgb24"
        for index, side in enumerate((64, 256)):
            encoder = av.CodecContext.create("png", "w")
            encoder.width, encoder.height, encoder.pix_fmt, encoder.time_base = side, side, "rgb24", Fraction(1, 12)
            frame = av.VideoFrame.from_ndarray(np.zeros((side, side, 3), np.uint8))
            frame.pts = index
            for packet in [*encoder.encode(frame), *encoder.encode()]:
                packet.stream = stream
                container.mux(packet)
    widths = []
    with pictures.open_video(tmp_path / "grows.mov") as container:
        stream = pictures.video_stream(container)
        with pytest.raises(av.error.FFmpegError):
            widths += (frame.width for frame in container.decode(stream))
    assert 256 not in widths


def test_frames_with_alpha_have_the_same_limit(tmp_path, monkeypatch):
    with av.open(tmp_path / "a.webm", "w") as container:
        stream = container.add_stream("libvpx-vp9", rate=12)
        stream.width, stream.height, stream.pix_fmt = 64, 64, "yuva420p"
        frame = av.VideoFrame.from_ndarray(np.zeros((64, 64, 4), np.uint8), format="rgba")
        for packet in [*stream.encode(frame), *stream.encode()]:
            container.mux(packet)
    with pictures.open_video(tmp_path / "a.webm") as container:
        assert [frame.format.name for frame in pictures.decode_video(container)] == ["yuva420p"]
    monkeypatch.setitem(pictures.DECODER_LIMITS, "max_pixels", str(64 * 32))
    with pictures.open_video(tmp_path / "a.webm") as container, pytest.raises(av.error.FFmpegError):
        list(pictures.decode_video(container))
