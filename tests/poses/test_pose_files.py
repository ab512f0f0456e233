import os
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from PIL import Image

from tests.tiny_components import get_dummy_iuv
from training.poses.channel_order import CHANNEL_ORDERS, find_channel_order
from training.poses.flicker import temporal_median
from training.poses.gaps import fill_gaps
from training.poses.pose_files import read_poses


def picture(color="red", size=(8, 10)):
    return Image.new("RGB", size, color)


def write_video(path, codec, pixel_format, frames):
    with av.open(path, "w") as container:
        stream = container.add_stream(codec, rate=25)
        stream.width, stream.height, stream.pix_fmt = *frames[0].size, pixel_format
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_image(frame)))
        container.mux(stream.encode())


def test_pose_frames_come_in_the_order_of_their_numbers(tmp_path):
    for number in (10, 9, 8):
        picture((number, 0, 0)).save(tmp_path / f"frame_{number}.png")
    (tmp_path / "notes.txt").write_text("not a frame")
    frames = read_poses(tmp_path)
    assert [frame.getpixel((0, 0))[0] for frame in frames] == [8, 9, 10]


def test_a_stack_of_pictures_equals_the_folder(tmp_path):
    stack = np.random.default_rng(0).integers(0, 25, (3, 6, 4, 3), dtype=np.uint8)
    np.save(tmp_path / "iuv.npy", stack)
    for i, frame in enumerate(stack):
        Image.fromarray(frame).save(tmp_path / f"{i}.png")
    from_stack, from_folder = read_poses(tmp_path / "iuv.npy"), read_poses(tmp_path)
    assert [f.tobytes() for f in from_stack] == [f.tobytes() for f in from_folder]


def test_a_stack_of_maps_keeps_its_values(tmp_path):
    maps = np.zeros((2, 2, 5, 4))
    maps[0, 0], maps[1, 1] = 1.0, 0.5
    np.save(tmp_path / "maps.npy", maps)
    poses = read_poses(tmp_path / "maps.npy")
    assert poses.dtype == torch.float32 and poses.shape == (2, 2, 5, 4)
    np.testing.assert_array_equal(poses.numpy(), maps)


def test_bad_poses_are_refused(tmp_path):
    with pytest.raises(ValueError, match="`poses` must be a folder of IUV pictures, .* which does not exist"):
        read_poses(tmp_path / "missing")
    with pytest.raises(ValueError, match="`poses` must hold IUV pictures"):
        read_poses(tmp_path)
    picture().save(tmp_path / "0.png")
    picture(size=(8, 12)).save(tmp_path / "1.png")
    with pytest.raises(
        ValueError, match=r"`poses` must have one size, got \(8, 10\) in '0.png' and \(8, 12\) in '1.png'"
    ):
        read_poses(tmp_path)
    Image.new("L", (8, 10)).save(tmp_path / "1.png")
    with pytest.raises(ValueError, match="`poses` must be RGB pictures .* got mode L"):
        read_poses(tmp_path)
    (tmp_path / "1.png").write_bytes(b"")
    with pytest.raises(ValueError, match="`poses` must be readable pictures"):
        read_poses(tmp_path)


@pytest.mark.parametrize(
    "stack",
    [np.zeros((2, 3, 5, 4)), np.full((2, 2, 5, 4), 1.5), np.zeros((0, 2, 5, 4)), np.zeros((5, 4, 3), np.uint8)],
    ids=["channels", "range", "empty", "one frame"],
)
def test_bad_stacks_are_refused(tmp_path, stack):
    np.save(tmp_path / "poses.npy", stack)
    with pytest.raises(ValueError, match=r"`poses` must be uint8 \[F, H, W, 3\] or floats \[F, 2, H, W\]"):
        read_poses(tmp_path / "poses.npy")


def test_pickled_stacks_are_refused(tmp_path):
    np.save(tmp_path / "poses.npy", np.array([{"a": 1}], dtype=object), allow_pickle=True)
    with pytest.raises(ValueError, match="`poses` must be a plain numpy array"):
        read_poses(tmp_path / "poses.npy")


@pytest.mark.parametrize(
    ("name", "codec", "pixel_format"),
    [("poses.mkv", "ffv1", "bgr0"), ("poses.mov", "png", "rgb24"), ("poses.avi", "huffyuv", "rgb24")],
)
def test_a_lossless_video_equals_the_folder(tmp_path, name, codec, pixel_format):
    frames = [get_dummy_iuv(i) for i in range(4)]
    write_video(tmp_path / name, codec, pixel_format, frames)
    assert [f.tobytes() for f in read_poses(tmp_path / name)] == [f.tobytes() for f in frames]


def test_a_lossy_video_is_refused(tmp_path):
    for codec, pixel_format in (("mpeg4", "yuv420p"), ("ffv1", "yuv420p")):
        write_video(tmp_path / "poses.mkv", codec, pixel_format, [picture(size=(32, 32))] * 2)
        with pytest.raises(ValueError, match=f"lossless RGB codec .* got {codec}, {pixel_format}"):
            read_poses(tmp_path / "poses.mkv")
    (tmp_path / "poses.mkv").write_text("no video")
    with pytest.raises(ValueError, match="`poses` must be a readable video"):
        read_poses(tmp_path / "poses.mkv")
    (tmp_path / "poses.txt").write_text("no poses")
    with pytest.raises(ValueError, match="`poses` must be a folder .* got .*poses.txt'\\.$"):
        read_poses(tmp_path / "poses.txt")


def test_the_releases_maps_are_read_from_a_folder_with_its_frames(tmp_path):
    maps = np.random.default_rng(0).random((12, 2, 5, 4))
    for number, array in enumerate(maps):
        np.save(tmp_path / f"frame_{number}_densepose.npy", array)
        picture().save(tmp_path / f"frame_{number}.png")
    poses = read_poses(tmp_path)
    assert poses.dtype == torch.float32
    np.testing.assert_array_equal(poses.numpy(), maps.astype(np.float32))


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.full((2, 5, 4), np.nan), r"`poses` must be floats \[2, H, W\] within \[0, 1\]"),
        (np.full((2, 5, 4), 255.0), r"`poses` must be floats \[2, H, W\] within \[0, 1\]"),
        (np.zeros((3, 5, 4)), r"got float64 \[3, 5, 4\]"),
        (np.zeros((2, 5, 6)), r"one size, got \(2, 5, 4\) in 'frame_0_densepose.npy' and \(2, 5, 6\)"),
    ],
)
def test_bad_maps_of_the_release_are_refused(tmp_path, array, message):
    np.save(tmp_path / "frame_0_densepose.npy", np.zeros((2, 5, 4)))
    np.save(tmp_path / "frame_1_densepose.npy", array)
    with pytest.raises(ValueError, match=message):
        read_poses(tmp_path)


def save_numbered(folder, names, size=(8, 10)):
    for value, name in enumerate(names):
        picture((value, 0, 0), size).save(folder / name)


def values(poses):
    return [frame.getpixel((0, 0))[0] for frame in poses]


def test_missing_numbers_are_filled_or_named(tmp_path, caplog):
    save_numbered(tmp_path, [f"frame{number}_IUV.png" for number in (0, 1, 2, 8, 9)])
    assert values(read_poses(tmp_path)) == [0, 1, 2, 2, 2, 2, 3, 3, 3, 4]
    assert "leaves out frames, which copy their neighbours: [3, 4, 5, 6, 7]" in caplog.text
    for name in ("frame30_IUV.png", "frame31_IUV.png"):
        picture().save(tmp_path / name)
    with pytest.raises(ValueError, match="`poses` must be consecutive .* no frames 10..29 after 'frame9_IUV.png'"):
        read_poses(tmp_path)
    assert len(read_poses(tmp_path, max_gap=20)) == 32


def test_missing_numbers_of_the_releases_maps_are_named(tmp_path):
    for number in (0, 1, 9):
        np.save(tmp_path / f"frame_{number}_densepose.npy", np.zeros((2, 5, 4)))
    with pytest.raises(ValueError, match="got no frames 2..8 after 'frame_1_densepose.npy'"):
        read_poses(tmp_path)


@pytest.mark.parametrize(
    "names",
    [
        ["0.png", "5.png", "10.png", "15.png"],  # every fifth frame
        ["t33.png", "t67.png", "t100.png"],  # times in ms
        ["a1.png", "b2.png", "c9.png"],  # the number does not count alone
        ["s1_f1.png", "s1_f2.png", "s2_f9.png"],
        ["only9.png"],
    ],
)
def test_names_without_a_gap_are_taken_as_they_are(tmp_path, names):
    save_numbered(tmp_path, names)
    assert values(read_poses(tmp_path, max_gap=0)) == list(range(len(names)))


def test_one_number_twice_is_refused(tmp_path):
    save_numbered(tmp_path, ["1.png", "01.png", "2.png"])
    with pytest.raises(ValueError, match="`poses` must have one file per frame, got the number 1 twice: '01.png' and"):
        read_poses(tmp_path)


def test_a_number_far_away_takes_no_memory(tmp_path):
    save_numbered(tmp_path, ["0.png", "1.png", f"{10**40}.png"])
    with pytest.raises(ValueError, match="got no frames 2..9999"):
        read_poses(tmp_path)


def test_hidden_files_and_folders_are_no_poses(tmp_path):
    save_numbered(tmp_path, ["0.png", "1.png"])
    (tmp_path / "._2.png").write_bytes(b"")
    (tmp_path / "._frame_1_densepose.npy").write_bytes(b"")
    (tmp_path / "a.png").mkdir()
    os.mkfifo(tmp_path / "3.png")
    assert values(read_poses(tmp_path)) == [0, 1]


def npy(shape="(2, 2, 5, 4)", head="{'descr': '<f8', 'fortran_order': False, 'shape': %s, }", size=64):
    head = (head % shape if "%" in head else head).encode()
    head += b" " * (-(11 + len(head)) % 64) + b"\n"
    return b"\x93NUMPY\x01\x00" + len(head).to_bytes(2, "little") + head + bytes(size)


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (npy("(100000, 20000, 20000, 3)"), "mmap length is greater than file size"),
        (npy("(1" + "0" * 30 + ",)"), "too large"),
        (npy("-" * 3000 + "1"), "recursion"),
        (npy("(" * 3000 + ")" * 3000), "Cannot parse header"),
        (npy("(-1, 2, 5, 4)"), "must be positive"),
        (npy(), "greater than file size"),  # cut short
        (b"PK\x05\x06" + bytes(18), "magic string"),  # a ZIP file, as of `np.savez`
        (b"", "EOF"),
    ],
)
def test_broken_arrays_are_one_short_error(tmp_path, data, reason):
    for name in ("poses.npy", "frame_0_densepose.npy"):
        (tmp_path / name).write_bytes(data)
    for path in (tmp_path / "poses.npy", tmp_path):
        with pytest.raises(ValueError, match=f"`poses` must be a plain numpy array .*{reason}") as error:
            read_poses(path)
        assert len(str(error.value)) < 400 + len(str(path)) and "\n" not in str(error.value)


def test_lossless_webp_is_read_and_lossy_webp_refused(tmp_path):
    frames = [get_dummy_iuv(i) for i in range(2)]
    for index, frame in enumerate(frames):
        frame.save(tmp_path / f"{index}.webp", lossless=True, exif=b"Exif\0\0" if index else b"")
    assert [frame.tobytes() for frame in read_poses(tmp_path)] == [frame.tobytes() for frame in frames]
    for how in ({"lossless": False}, {"lossless": True, "save_all": True, "append_images": frames[:1]}):
        frames[1].save(tmp_path / "1.webp", **how)
        with pytest.raises(ValueError, match="must be lossless pictures, .* got lossy or animated WebP in .*1.webp"):
            read_poses(tmp_path)
    for index, frame in enumerate(frames):
        frame.save(tmp_path / f"{index}.png")
    assert len(read_poses(tmp_path)) == 2, "beside PNGs, WebP files are the clip's pictures"
    (tmp_path / "1.webp").rename(tmp_path / "1.png")
    with pytest.raises(ValueError, match="got lossy or animated WebP in .*1.png"):
        read_poses(tmp_path)


def test_a_pose_file_that_cannot_exist_is_refused(tmp_path):
    for name in ("x" * 300, "x" * 300 + ".npy", "x" * 300 + ".mkv", "a\0b"):
        with pytest.raises(ValueError, match="`poses` must be a folder of IUV pictures, .* which does not exist"):
            read_poses(name)
    os.mkfifo(tmp_path / "pipe.npy")
    with pytest.raises(ValueError, match="`poses` must be a folder of IUV pictures, .*pipe.npy'.$"):
        read_poses(tmp_path / "pipe.npy")


def test_a_damaged_pose_video_is_named_once_and_without_an_error_s_number(tmp_path):
    frames = [get_dummy_iuv(i) for i in range(4)]
    write_video(tmp_path / "poses.avi", "png", "rgb24", frames)
    data = bytearray((tmp_path / "poses.avi").read_bytes())
    start = data.index(b"IHDR")
    data[start : start + 40] = b"\xff" * 40
    (tmp_path / "poses.avi").write_bytes(data)
    with pytest.raises(ValueError, match="`poses` must be a readable video, .* it cannot be decoded ") as raised:
        read_poses(tmp_path / "poses.avi")
    assert "Errno" not in str(raised.value) and str(raised.value).count(str(tmp_path)) == 1


def test_jpeg_poses_are_refused_with_the_reason(tmp_path):
    get_dummy_iuv().save(tmp_path / "0.jpg", quality=95)
    with pytest.raises(ValueError, match="`poses` must hold .* got .* with lossy pictures, which mix U and V"):
        read_poses(tmp_path)
    jpeg = Image.open(tmp_path / "0.jpg")
    with pytest.raises(ValueError, match="A lossy format such as JPEG has mixed its parts"):
        find_channel_order([np.asarray(jpeg)])
    os.rename(tmp_path / "0.jpg", tmp_path / "0.png")
    with pytest.raises(ValueError, match="must be lossless .* mix U and V across parts; got JPEG in .*0.png"):
        read_poses(tmp_path)


def group(num_people, order="vui"):
    """IUV of people who stand close together: plain torsos that touch, and heads apart."""
    iuv = np.zeros((120, 160, 3), np.uint8)
    for i in range(num_people):
        iuv[40:, 10 + 50 * i : 60 + 50 * i] = (200, 100, 2)
        iuv[10:40, 25 + 50 * i : 35 + 50 * i] = (200, 100, 23)
        iuv[10:40, 35 + 50 * i : 45 + 50 * i] = (200, 100, 24)
    return Image.fromarray(np.ascontiguousarray(iuv[..., CHANNEL_ORDERS[order]]))


@pytest.mark.parametrize("order", CHANNEL_ORDERS)
def test_several_people_give_a_notice(tmp_path, caplog, order):
    group(2, order).save(tmp_path / "0.png")
    read_poses(tmp_path, check_order=False)
    assert "shows several people" in caplog.text and "extract_poses.py --densepose follows one person" in caplog.text


def test_one_person_gives_no_notice(tmp_path, caplog):
    frames = [group(1), group(1), group(2), group(0), get_dummy_iuv().resize((160, 120), 0)]
    frames[1].paste((200, 100, 3), (34, 10, 36, 40))  # a raised arm in front of the face
    frames[1].paste((200, 100, 23), (100, 100, 103, 103))  # a speck of a wrong part
    for index, frame in enumerate(frames):
        frame.save(tmp_path / f"{index}.png")
    read_poses(tmp_path)
    assert not caplog.records


VIRIDIS, PARULA = (68, 1, 84), (53, 42, 135)


def test_the_part_codes_tell_the_channel_order():
    frames = [np.asarray(get_dummy_iuv(i)) for i in range(3)]
    assert find_channel_order(frames) == ("vui", None)
    swapped = [frame[..., ::-1] for frame in frames]
    assert find_channel_order(swapped) == ("iuv", None)
    np.testing.assert_array_equal(swapped[0][..., CHANNEL_ORDERS["iuv"]], frames[0])


def test_the_other_channel_order_is_refused_with_the_command_that_turns_it(tmp_path):
    get_dummy_iuv().save(tmp_path / "0.png")
    Image.fromarray(np.asarray(get_dummy_iuv())[..., ::-1].copy()).save(tmp_path / "1.png")
    match = "in the blue channel, got .* in frame 1. Its red channel holds them .*extract_poses.py --channel_order iuv"
    with pytest.raises(ValueError, match=match):
        read_poses(tmp_path)


def test_frames_of_both_channel_orders_are_refused():
    frame = np.asarray(get_dummy_iuv())
    with pytest.raises(ValueError, match="must have one channel order, got frames of V, U, I and frames of I, U, V"):
        find_channel_order([frame, frame[..., ::-1]])


def test_a_stated_channel_order_must_fit_the_pictures():
    frame = np.asarray(get_dummy_iuv())
    for frames, wrong, channel, right in (([frame], "iuv", "red", "vui"), ([frame[..., ::-1]], "vui", "blue", "iuv")):
        with pytest.raises(
            ValueError, match=rf"`channel_order` must fit .*'{wrong}', for which the {channel} .*: '{right}' fits\."
        ):
            find_channel_order(frames, wrong)
        assert find_channel_order(frames, right) == (right, None)


def test_an_ambiguous_channel_order_gives_the_default_and_a_notice():
    empty = [np.zeros((4, 4, 3), np.uint8)]
    order, notice = find_channel_order(empty)
    assert order == "vui" and "vui is taken" in notice
    for stated in CHANNEL_ORDERS:
        assert find_channel_order(empty, stated) == (stated, None), "a stated order that fits is obeyed"
    # A single frame may fit both orders; the whole clip decides.
    frame = np.full((4, 4, 3), (200, 9, 3), np.uint8)
    assert find_channel_order([*empty, frame]) == ("vui", None)


@pytest.mark.parametrize(("name", "color"), [("viridis", VIRIDIS), ("parula", PARULA)])
def test_part_colours_are_refused_with_the_reason(tmp_path, name, color):
    frame = picture(color, (64, 64))
    frame.paste((240, 200, 60), (20, 20, 40, 60))
    match = f"A part-colour picture .{name}. no longer contains U and V: extract the poses again"
    with pytest.raises(ValueError, match=match):
        find_channel_order([np.asarray(frame)])
    write_video(tmp_path / "parts.mp4", "mpeg4", "yuv420p", [frame] * 2)
    with pytest.raises(ValueError, match=match):
        read_poses(tmp_path / "parts.mp4")
    with pytest.raises(ValueError, match="in the red or the blue channel, got up to 90 and 80 in frame 0"):
        find_channel_order([np.full((4, 4, 3), (90, 9, 80), np.uint8)])


def test_gaps_are_filled_from_the_nearest_frame_up_to_a_limit():
    a, b = (np.full((2, 2, 3), value, np.uint8) for value in (1, 2))
    frames, filled = fill_gaps([None, a, None, None, None, b], max_gap=3)
    assert [int(frame[0, 0, 0]) for frame in frames] == [1, 1, 1, 1, 2, 2] and filled == [0, 2, 3, 4]
    assert fill_gaps([a, b], max_gap=0) == ([a, b], [])
    with pytest.raises(ValueError, match="`max_gap` must be at least 3 for the gap at frame 2, got 2"):
        fill_gaps([None, a, None, None, None, b], max_gap=2)
    with pytest.raises(ValueError, match="`frames` must show a person, got none in any of 2"):
        fill_gaps([None, None], max_gap=9)


def test_the_median_changes_only_pixels_whose_part_stays():
    frames = [np.full((1, 2, 3), (v, 50, 3), np.uint8) for v in (10, 90, 14, 13)]
    frames[1][0, 1, 2] = 4
    calmed = temporal_median(frames)
    assert [frame[0, 0].tolist() for frame in calmed] == [[10, 50, 3], [14, 50, 3], [14, 50, 3], [13, 50, 3]]
    assert [frame[0, 1].tolist() for frame in calmed] == [[10, 50, 3], [90, 50, 4], [14, 50, 3], [13, 50, 3]]


REAL = os.environ.get("DREAMPOSE_REAL_DATA")


@pytest.mark.skipif(not REAL, reason="DREAMPOSE_REAL_DATA names no folder of real DensePose outputs")
def test_real_outputs_are_told_apart():
    clip = [np.asarray(frame) for frame in read_poses(Path(REAL) / "ubc_excerpt" / "iuv")]
    assert len(clip) == 120 and find_channel_order(clip) == ("vui", None)
    several = np.asarray(Image.open(Path(REAL) / "densepose" / "several_people_IUV.png").convert("RGB"))
    assert find_channel_order([several]) == ("vui", None)
    with pytest.raises(ValueError, match="A part-colour picture .viridis."):
        read_poses(Path(REAL) / "densepose" / "part_colours_only.mp4")


def flicker(frames):
    """Mean deviation of U and V from the mean of the frames before and after, where all three show the same part."""
    deviations = []
    for before, frame, after in zip(frames, frames[1:], frames[2:]):
        steady = (frame[..., 2] > 0) & (before[..., 2] == frame[..., 2]) & (after[..., 2] == frame[..., 2])
        before, frame, after = (iuv[..., :2][steady].astype(float) for iuv in (before, frame, after))
        deviations.append(np.abs(frame - (before + after) / 2).mean())
    return np.mean(deviations)


@pytest.mark.skipif(not REAL, reason="DREAMPOSE_REAL_DATA names no folder of real DensePose outputs")
def test_the_median_halves_a_real_detectors_flicker():
    clip = [np.asarray(frame) for frame in read_poses(Path(REAL) / "ubc_excerpt" / "iuv")]
    assert flicker(temporal_median(clip, 1)) < flicker(clip) / 2
