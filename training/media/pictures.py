# Copyright 2026 The DreamPose for diffusers authors
# Licensed under the Apache License, Version 2.0
"""Pictures and videos: read photos and frames, show poses, draw grids, write videos, GIFs and folders of pictures."""

import os
import re
from collections.abc import Iterable, Iterator, Sequence
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont, ImageOps, ImageSequence, UnidentifiedImageError

from pipeline_dreampose import to_rgb


class UnreadablePictures(ValueError):
    """A picture or video that cannot be read."""


PICTURE_SUFFIXES = (".bmp", ".jpeg", ".jpg", ".png", ".webp")


def read_photo(path: str | os.PathLike) -> Image.Image:
    """Read a picture as the pipeline does: RGB, upright according to its EXIF data, transparency over white.

    Raise [`UnreadablePictures`] if the file does not exist or is no picture.
    """
    if not Path(path).is_file():
        raise UnreadablePictures(f"`image` must be a file, got {str(path)!r}, which does not exist.")
    try:
        with Image.open(path) as image:
            image.load()
            return to_rgb(image)
    except (UnidentifiedImageError, OSError, SyntaxError) as error:
        raise UnreadablePictures(f"`image` must be a readable picture, got {str(path)!r}: {error}.") from error


def natural_order(file: Path) -> tuple[list, str]:
    """Sort key that orders files by the numbers in their names: `frame_2` before `frame_10`."""
    return [int(part) if part.isdigit() else part for part in re.split(r"([0-9]+)", file.stem)], file.name


def iterate_pictures(path: str | os.PathLike) -> Iterator[Image.Image]:
    """Yield the frames of a video as a player shows them, or the pictures of a folder in natural order, all RGB.

    Raise [`UnreadablePictures`] if there are no pictures at `path`, or one cannot be read.
    """
    path = Path(path)
    if path.is_dir():
        files = sorted((f for f in path.iterdir() if f.suffix.lower() in PICTURE_SUFFIXES), key=natural_order)
        if not files:
            raise UnreadablePictures(f"`input` must hold pictures ({', '.join(PICTURE_SUFFIXES)}), got {str(path)!r}.")
        yield from map(read_photo, files)
        return
    try:
        with av.open(path) as container:
            for frame in container.decode(video=0):
                picture = frame.to_image()
                # Phones store an upright video sideways, with a rotation that players apply.
                yield picture.rotate(frame.rotation, expand=True) if frame.rotation else picture
    except (av.error.FFmpegError, IndexError) as error:
        raise UnreadablePictures(
            f"`input` must be a folder or a readable video, got {str(path)!r}: {error}."
        ) from error


def poses_as_pictures(poses: list[Image.Image] | torch.Tensor) -> list[Image.Image]:
    """Show poses as `F` RGB pictures: IUV pictures unchanged, maps `[F, 2, H, W]` with U as green and V as red."""
    if not isinstance(poses, torch.Tensor):
        return list(poses)
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
        with Image.open(source) as image:
            frames = [image] if is_jpeg else ImageSequence.Iterator(image)
            frames = [(ImageOps.exif_transpose(frame), frame.info.get("duration", 0)) for frame in frames]
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
    except (UnidentifiedImageError, OSError, SyntaxError, ValueError) as error:
        raise UnreadablePictures(f"`picture` must be a readable picture, got {str(source)!r}: {error}.") from error


def spare_inputs(name: str, outputs: Sequence[str | os.PathLike], inputs: Sequence[str | os.PathLike | None]) -> None:
    """Raise a `ValueError` if an output is one of the inputs, or the folder that holds an input file.

    `name` is the argument that says where to write. Inputs that are no files or folders, such as Hub ids, are ignored.
    """
    for output in map(Path, outputs):
        for path in (Path(path) for path in inputs if path is not None and Path(path).exists()):
            taken = [path.resolve(), *([] if path.is_dir() else [path.resolve().parent])]
            if output.resolve() in taken:
                raise ValueError(f"`{name}` must spare what is read, but {str(output)!r} writes over {str(path)!r}.")


def write_video(frames: Sequence[Image.Image], path: str | os.PathLike, fps: float = 30) -> None:
    """Write frames of one size as mp4 (h264, or mpeg4 if libx264 is missing; yuv420p).

    An odd side is made even by repeating its last line. The file gets its name when it is whole.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.stem}.partial.mp4")
    with av.open(partial, "w") as container:
        stream = container.add_stream(_video_encoder(), rate=Fraction(fps).limit_denominator(1000))
        stream.width, stream.height = (side + side % 2 for side in frames[0].size)
        stream.pix_fmt = "yuv420p"
        stream.options = {"crf": "18"}
        for frame in frames:
            pixels = np.asarray(frame.convert("RGB"))
            pixels = np.pad(pixels, ((0, pixels.shape[0] % 2), (0, pixels.shape[1] % 2), (0, 0)), mode="edge")
            container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        container.mux(stream.encode())
    os.replace(partial, path)


def _video_encoder() -> str:
    try:
        return av.Codec("libx264", "w").name
    except ValueError:  # UnknownCodecError: a build of FFmpeg without it
        return "mpeg4"


def write_gif(frames: Sequence[Image.Image], path: str | os.PathLike, fps: float = 30) -> None:
    """Write frames of one size as an endless GIF. The format rounds the time of a frame to 10 ms."""
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    frames[0].save(path, "GIF", save_all=True, append_images=frames[1:], duration=1000 / fps, loop=0)


def write_frames(frames: Sequence[Image.Image], path: str | os.PathLike, fps: float = 30) -> None:
    """Write frames of one size as a video, a GIF or a folder of PNGs, if `path` ends in `.mp4`, `.gif` or neither."""
    path = Path(path)
    if path.suffix == ".mp4":
        write_video(frames, path, fps)
    elif path.suffix == ".gif":
        write_gif(frames, path, fps)
    else:
        write_picture_folder(frames, path)


def write_picture_folder(frames: Iterable[Image.Image], path: str | os.PathLike) -> None:
    """Write pictures as numbered PNGs into a folder. Numbered PNGs of an earlier video are deleted."""
    path = Path(path)
    path.mkdir(parents=True, exist_ok=True)
    for old in path.glob("[0-9][0-9][0-9][0-9][0-9].png"):
        old.unlink()
    for index, frame in enumerate(frames):
        frame.save(path / f"{index:05d}.png")
