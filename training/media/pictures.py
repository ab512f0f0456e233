# Copyright 2026 The DreamPose for diffusers authors
# Licensed under the Apache License, Version 2.0
"""Pictures and videos: read photos and frames, show poses, draw grids, write videos, GIFs and folders of pictures."""

import itertools
import os
import re
import struct
import warnings
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from fractions import Fraction
from pathlib import Path
from typing import BinaryIO

import av
import numpy as np
import torch
from av.sidedata.sidedata import Type as SideData
from av.stream import Disposition
from PIL import ExifTags, Image, ImageDraw, ImageFont, ImageOps, ImageSequence, UnidentifiedImageError

from pipeline_dreampose import to_rgb
from training.engine.messages import shorten
from training.media.outputs import write_picture_folder
from training.media.settings_file import written_whole
from training.media.sound import SoundWriter


class UnreadablePictures(ValueError):
    """A picture or video that cannot be read."""


PICTURE_SUFFIXES = (".bmp", ".jpeg", ".jpg", ".png", ".webp")
# A file's content selects its decoder. Without these lists, an EPS file would start Ghostscript and a playlist would
# make FFmpeg fetch addresses.
PICTURE_FORMATS = ("AVIF", "BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP")
VIDEO_FORMATS = "apng,asf,avi,flv,gif,matroska,mov,mpeg,mpegts,nut,ogg"
_AUDIO_FORMATS = "aac,ac3,aiff,amr,ape,au,caf,dts,eac3,flac,mp3,tta,w64,wav,wv"  # such a file has no pictures
MAX_PIXELS = Image.MAX_IMAGE_PIXELS  # about 89 million; a larger picture may be a decompression bomb
DECODER_LIMITS = {"max_pixels": str(MAX_PIXELS)}  # FFmpeg refuses a larger frame, whatever the head of the file says
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)  # `open_picture` refuses it
# FFmpeg's own decoders of these codecs leave out the alpha channel.
_ALPHA_DECODERS = {"vp8": "libvpx", "vp9": "libvpx-vp9"}
# Signs of a, b, c and d in a display matrix: x' = a x + c y and y' = b x + d y.
_ORIENTATIONS = {
    (1, 0, 0, 1): None,
    (-1, 0, 0, 1): Image.Transpose.FLIP_LEFT_RIGHT,
    (1, 0, 0, -1): Image.Transpose.FLIP_TOP_BOTTOM,
    (-1, 0, 0, -1): Image.Transpose.ROTATE_180,
    (0, 1, -1, 0): Image.Transpose.ROTATE_270,
    (0, -1, 1, 0): Image.Transpose.ROTATE_90,
    (0, 1, 1, 0): Image.Transpose.TRANSPOSE,
    (0, -1, -1, 0): Image.Transpose.TRANSVERSE,
}


@contextmanager
def open_picture(source: str | os.PathLike | BinaryIO) -> Iterator[Image.Image]:
    """Open a picture in one of `PICTURE_FORMATS`, without decoding it.

    Raise [`UnreadablePictures`] with the reason if it is none, has more than `MAX_PIXELS`, or the `with` block fails.
    """
    Image.init()
    if isinstance(source, (str, os.PathLike)) and not os.path.isfile(source):
        raise UnreadablePictures("it is not a file")  # opening a pipe would wait
    try:
        with Image.open(source, formats=[name for name in PICTURE_FORMATS if name in Image.OPEN]) as image:
            if image.width * image.height > MAX_PIXELS:
                raise Image.DecompressionBombError(f"{image.width * image.height} pixels")
            yield image
    except Image.DecompressionBombError as error:  # Pillow raises it for twice as many
        num_pixels = re.search("[0-9]+", str(error))[0]
        raise UnreadablePictures(f"it has {num_pixels} pixels, and the limit is {MAX_PIXELS}") from error
    except UnidentifiedImageError as error:  # its text repeats the path
        raise UnreadablePictures(f"it is damaged, or in none of the formats {', '.join(PICTURE_FORMATS)}") from error
    except Exception as error:  # Pillow's decoders raise errors of many types for broken files
        raise UnreadablePictures(why_unreadable(error)) from error


def why_unreadable(error: Exception) -> str:
    """Return the text of an error of the system, FFmpeg or Pillow without its number and path."""
    if isinstance(error, av.error.FFmpegError):
        return f"it cannot be decoded ({error.strerror or 'FFmpeg gives no reason'})"
    return getattr(error, "strerror", None) or str(error) or type(error).__name__


def upright(image: Image.Image) -> Image.Image:
    """Rotate a picture by its EXIF orientation. Broken EXIF data are ignored, as viewers do."""
    image.load()  # a second attempt to load broken pixels may succeed, so it must not fail below
    try:
        has_orientation = image.getexif().get(ExifTags.Base.Orientation) is not None
        return ImageOps.exif_transpose(image) if has_orientation else image
    except Exception:
        return image


def read_photo(path: str | os.PathLike, argument: str = "image") -> Image.Image:
    """Read a picture as the pipeline does: RGB, upright according to its EXIF data, transparency over white.

    Raise [`UnreadablePictures`], which names the `argument`, if `path` is no file or no picture.
    """
    if not os.path.isfile(path):  # a `Path` would raise an error for a name that is too long
        missing = "" if os.path.exists(path) else ", which does not exist"
        raise UnreadablePictures(f"`{argument}` must be a file, got {shorten(str(path))}{missing}.")
    try:
        with open_picture(path) as image:
            image.load()
            return to_rgb(image)
    except UnreadablePictures as error:
        raise UnreadablePictures(f"`{argument}` must be a readable picture, got {str(path)!r}: {error}.") from error


def natural_order(file: Path) -> tuple[list, str]:
    """Sort key that orders files by the numbers in their names: `frame_2` before `frame_10`."""
    parts = re.split(r"([0-9]+)", file.stem)  # every second part is a number
    return [int(part) if index % 2 else part for index, part in enumerate(parts)], file.name


def is_visible_file(path: Path) -> bool:
    """Return whether a path is a visible file, not a folder or pipe. A dead link counts, so that reading it fails."""
    return not path.name.startswith(".") and (path.is_file() or not path.exists())


def list_files(folder: Path, suffixes: Sequence[str]) -> list[Path]:
    """List the visible files of a folder with one of the lower-case `suffixes`, in natural order."""
    files = (file for file in folder.iterdir() if file.suffix.lower() in suffixes and is_visible_file(file))
    return sorted(files, key=natural_order)


def iterate_pictures(path: str | os.PathLike) -> Iterator[Image.Image]:
    """Yield the frames of a video as a player shows them, or the pictures of a folder in natural order, all RGB.

    A single picture is a video of one frame. Raise [`UnreadablePictures`] if there are no pictures at `path`, or one
    cannot be read.
    """
    path = Path(path)
    if path.suffix.lower() in PICTURE_SUFFIXES and not os.path.isdir(path):
        yield read_photo(path, "input")
    elif os.path.isdir(path):
        files = list_files(path, PICTURE_SUFFIXES)
        if not files:
            raise UnreadablePictures(f"`input` must hold pictures ({', '.join(PICTURE_SUFFIXES)}), got {str(path)!r}.")
        yield from (read_photo(file, "input") for file in files)
    else:
        try:
            with open_video(path) as container:
                aspect = pixel_aspect(video_stream(container))
                yield from (shown_picture(frame, aspect) for frame in decode_video(container))
        except (av.error.FFmpegError, OSError, ValueError) as error:
            raise UnreadablePictures(
                f"`input` must be a folder or a readable video, got {shorten(str(path))}: {why_unreadable(error)}."
            ) from error


def open_video(
    path: str | os.PathLike, format: str | None = None, options: dict[str, str] | None = None
) -> av.container.InputContainer:
    """Open a local file as a video in one of `VIDEO_FORMATS`, or in the `format` alone.

    Raise [`UnreadablePictures`] if it is no file (an address or a pipe), in another format, or cannot be opened.
    """
    path = Path(path).absolute()  # FFmpeg reads a relative path with a colon as an address
    if not os.path.isfile(path):
        raise UnreadablePictures("it is not a file" if os.path.exists(path) else "it does not exist")
    formats = format or VIDEO_FORMATS
    lists = {"protocol_whitelist": "file", "format_whitelist": f"{formats},{_AUDIO_FORMATS}"}
    try:
        return av.open(path, format=format, options=lists | (options or {}), metadata_errors="ignore")
    except (av.error.ArgumentError, av.error.InvalidDataError) as error:
        raise UnreadablePictures(f"it is damaged, or in none of the formats {formats}") from error
    except av.error.FFmpegError as error:
        raise UnreadablePictures(why_unreadable(error)) from error


def video_stream(container: av.container.InputContainer) -> av.VideoStream:
    """Return the first video stream. Raise [`UnreadablePictures`] if there is none, or its frames are too large."""
    # The cover of an album is stored as a video stream.
    streams = [stream for stream in container.streams.video if not stream.disposition & Disposition.attached_pic]
    if not streams:
        reason = "it has sound, but no pictures" if container.streams.audio else "it has no video stream"
        raise UnreadablePictures(reason)
    if streams[0].codec_context is None:
        raise UnreadablePictures("FFmpeg does not know its codec")
    width, height = _shown_size(streams[0].width, streams[0].height, pixel_aspect(streams[0]))
    if width * height > MAX_PIXELS:
        raise UnreadablePictures(f"a frame has {width * height} pixels, and the limit is {MAX_PIXELS}")
    streams[0].codec_context.options = DECODER_LIMITS
    return streams[0]


def pixel_aspect(stream: av.VideoStream) -> Fraction:
    """Return how many times as wide as high a pixel of a video is shown; 1 if the video does not say."""
    aspect = stream.sample_aspect_ratio
    return aspect if aspect is not None and aspect > 0 else Fraction(1)


def _shown_size(width: int, height: int, aspect: Fraction) -> tuple[int, int]:
    """Return the size of a frame with square pixels. Like browsers, it makes one side larger, and none smaller."""
    return (round(width * aspect), height) if aspect > 1 else (width, round(height / aspect))


def decode_video(container: av.container.InputContainer) -> Iterator[av.VideoFrame]:
    """Yield the frames of the first video stream, with their alpha channel if there is one."""
    stream = video_stream(container)
    name = _ALPHA_DECODERS.get(stream.codec_context.name)
    if name is None or stream.metadata.get("alpha_mode") != "1":
        yield from container.decode(stream)
        return
    decoder = av.CodecContext.create(name, "r")
    decoder.options = DECODER_LIMITS
    for packet in container.demux(stream):
        yield from decoder.decode(packet)


def shown_picture(frame: av.VideoFrame, aspect: Fraction = Fraction(1)) -> Image.Image:
    """Return a frame as a player shows it: RGB over white, turned and mirrored by its display matrix.

    `aspect` is the frame's [`pixel_aspect`]. A frame whose pixels are not square is resized (Lanczos).
    """
    if frame.format.name == "pal8" or any(component.is_alpha for component in frame.format.components):
        picture = to_rgb(Image.fromarray(frame.to_ndarray(format="rgba")))
    else:
        picture = frame.to_image()
    size = _shown_size(*picture.size, aspect)
    if size != picture.size:
        picture = picture.resize(size, Image.Resampling.LANCZOS)
    matrix = frame.side_data.get(SideData.DISPLAYMATRIX)
    if matrix is None:
        return picture
    a, b, _, c, d, *_ = struct.unpack("=9i", bytes(matrix))
    if a * d == b * c:  # it would squeeze the picture into a line or a point, so players ignore it
        return picture
    largest = max(map(abs, (a, b, c, d)))
    signs = tuple(round(value / largest) for value in (a, b, c, d))
    if signs not in _ORIENTATIONS:  # a rotation by another angle than a quarter turn
        return picture.rotate(frame.rotation, expand=True)
    method = _ORIENTATIONS[signs]
    return picture if method is None else picture.transpose(method)


def poses_as_pictures(poses: Sequence[Image.Image] | torch.Tensor) -> Sequence[Image.Image]:
    """Show poses as `F` RGB pictures: IUV pictures unchanged, maps `[F, 2, H, W]` with U as green and V as red."""
    if not isinstance(poses, torch.Tensor):
        return poses
    levels = poses.mul(255).round().byte()
    pixels = torch.stack([levels[:, 1], levels[:, 0], torch.zeros_like(levels[:, 0])], dim=-1)
    return [Image.fromarray(frame) for frame in pixels.numpy()]


def to_pictures(frames: torch.Tensor) -> list[Image.Image]:
    """Convert frames of shape `[T, 3, H, W]`, uint8, to `T` RGB pictures."""
    return [Image.fromarray(frame) for frame in frames.permute(0, 2, 3, 1).numpy()]


def enlarge(image: Image.Image, scale: int) -> Image.Image:
    """Enlarge a picture by a whole factor of at least 1 (Lanczos)."""
    return image.resize((image.width * scale, image.height * scale), Image.Resampling.LANCZOS)


def picture_grid(
    rows: Sequence[Sequence[Image.Image | None]],
    titles: Sequence[str] | None = None,
    gap: int = 4,
    row_titles: Sequence[str] | None = None,
) -> Image.Image:
    """Arrange pictures of one size in a grid on white, as one RGB picture; `None` leaves a cell empty.

    `titles` stand above the columns and `row_titles` to the left of the rows, with `gap` pixels between the pictures.
    Raise a `ValueError` if the pictures differ in size.
    """
    sizes = {picture.size for row in rows for picture in row if picture is not None}
    if len(sizes) != 1:
        raise ValueError(f"`rows` must hold pictures of one size, got {sorted(sizes)}.")
    width, height = sizes.pop()
    text_height = min(max(12, width // 10), 24)
    font = ImageFont.load_default(text_height)
    top = 0 if titles is None else text_height + 2 * gap
    left = 0 if row_titles is None else int(max(map(font.getlength, row_titles))) + 2 * gap
    columns = max(map(len, rows))
    size = left + columns * (width + gap) - gap, top + len(rows) * (height + gap) - gap
    grid = Image.new("RGB", size, "white")
    for r, row in enumerate(rows):
        for c, picture in enumerate(row):
            if picture is not None:
                grid.paste(picture, (left + c * (width + gap), top + r * (height + gap)))
    draw = ImageDraw.Draw(grid)
    for c, title in enumerate(titles or ()):
        draw.text((left + c * (width + gap) + width / 2, top / 2), title, "black", font, anchor="mm")
    for r, title in enumerate(row_titles or ()):
        draw.text((left - gap, top + r * (height + gap) + height / 2), title, "black", font, anchor="rm")
    return grid


def copy_without_metadata(source: str | os.PathLike, target: str | os.PathLike) -> None:
    """Copy a picture or animation without the metadata about place, time, camera and person.

    The EXIF rotation is applied, and the colour profile is kept. `target` has the suffix of `source` and may be the
    same file. Raise [`UnreadablePictures`] if `source` is no picture, or its format cannot be written.
    """
    is_jpeg = Path(target).suffix.lower() in (".jpg", ".jpeg")  # a phone's JPEG may hold a second picture
    try:
        with open_picture(source) as image:
            frames = [image] if is_jpeg else ImageSequence.Iterator(image)
            frames = [(upright(frame).copy(), frame.info.get("duration", 0)) for frame in frames]
            how = {"quality": 95} if Path(target).suffix.lower() != ".png" else {}
            needs_rgb = is_jpeg and image.mode not in ("L", "RGB")
            if "icc_profile" in image.info and not needs_rgb:
                how["icc_profile"] = image.info["icc_profile"]
            if len(frames) > 1:
                how |= {"save_all": True, "duration": [duration for _, duration in frames]}
                how |= {"loop": image.info["loop"]} if "loop" in image.info else {}
        pictures = [frame.convert("RGB") if needs_rgb else frame for frame, _ in frames]
        for picture in pictures:
            picture.info = {key: picture.info[key] for key in ("transparency",) if key in picture.info}
        if len(pictures) > 1:
            how["append_images"] = pictures[1:]
        pictures[0].save(target, **how)
    except (OSError, ValueError) as error:
        raise UnreadablePictures(f"`picture` must be a readable picture, got {str(source)!r}: {error}.") from error


def spare_inputs(name: str, outputs: Sequence[str | os.PathLike], inputs: Sequence[str | os.PathLike | None]) -> None:
    """Raise a `ValueError` if an output is one of the inputs, or the folder that holds an input file.

    `name` is the argument that says where to write. Inputs that are no files or folders, such as Hub ids, are ignored.
    """
    for output in map(Path, outputs):
        for path in (Path(path) for path in inputs if path is not None and os.path.exists(path)):
            taken = [path.resolve(), *([] if path.is_dir() else [path.resolve().parent])]
            if output.resolve() in taken:
                raise ValueError(f"`{name}` must spare what is read, but {str(output)!r} writes over {str(path)!r}.")


def write_video(
    frames: Iterable[Image.Image], path: str | os.PathLike, fps: float = 30, sound: np.ndarray | None = None
) -> None:
    """Write frames of one size as mp4 (h264, or mpeg4 if libx264 is missing; yuv420p), with `sound` as AAC.

    Each frame is encoded when it comes. An odd side is made even by repeating its last line. The file gets its name
    when it is whole. The same frames give the same bytes, on any number of cores. `sound` is that of [`read_sound`].
    """
    (first, frames), rate = _started(frames), Fraction(fps).limit_denominator(1001)  # 30000/1001 is usual
    how = {"format": "mp4", "options": {"fflags": "+bitexact"}}
    with written_whole(Path(path)) as partial, av.open(partial, "w", **how) as container:
        stream = container.add_stream(_video_encoder(), rate=rate)
        stream.width, stream.height = (side + side % 2 for side in first.size)
        stream.pix_fmt = "yuv420p"
        stream.options = {"crf": "18", "flags": "+bitexact"}
        if stream.codec_context.name == "libx264":  # its assembly for macroblock trees is not reproducible
            stream.options |= {"x264-params": "cpu-independent=1"}
        stream.codec_context.thread_count = 1  # x264 writes other bytes with another number of threads
        writer = None if sound is None else SoundWriter(container, sound)
        for index, frame in enumerate(itertools.chain([first], frames)):
            pixels = np.asarray(frame.convert("RGB"))
            pixels = np.pad(pixels, ((0, pixels.shape[0] % 2), (0, pixels.shape[1] % 2), (0, 0)), mode="edge")
            container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
            if writer is not None:  # next to the frames, so that players need not search the file
                writer.write_until((index + 1) / float(rate))
        container.mux(stream.encode())
        if writer is not None:
            writer.close()


def _started(frames: Iterable[Image.Image]) -> tuple[Image.Image, Iterator[Image.Image]]:
    """Return the first frame and an iterator of the others."""
    frames = iter(frames)
    for first in frames:
        return first, frames
    raise ValueError("`frames` must hold at least one frame, got none.")


def _video_encoder() -> str:
    try:
        return av.Codec("libx264", "w").name
    except ValueError:  # UnknownCodecError: a build of FFmpeg without it
        return "mpeg4"


def write_gif(frames: Iterable[Image.Image], path: str | os.PathLike, fps: float = 30) -> None:
    """Write frames of one size as an endless GIF. The format rounds the time of a frame to 10 ms.

    Pillow holds all frames, with one byte per pixel. The file gets its name when it is whole.
    """
    first, frames = _started(frames)
    with written_whole(Path(path)) as partial:
        first.save(partial, "GIF", save_all=True, append_images=frames, duration=1000 / fps, loop=0)


def write_frames(
    frames: Iterable[Image.Image], path: str | os.PathLike, fps: float = 30, sound: np.ndarray | None = None
) -> None:
    """Write frames of one size by the end of `path`: .mp4, with `sound`, .gif, or neither for a folder of PNGs."""
    path = Path(path)
    if path.suffix == ".mp4":
        write_video(frames, path, fps, sound)
    elif path.suffix == ".gif":
        write_gif(frames, path, fps)
    else:
        write_picture_folder(frames, path)
