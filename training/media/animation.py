# Copyright 2026 The DreamPose for diffusers authors
# Licensed under the Apache License, Version 2.0
"""Rendering a video frame by frame, its picture strip, and a grid of guidance scales.

A frame depends only on its pose window, the shared noise and the seed. So several processes can share the frames, and
a killed run can resume. Each frame goes to a folder and from there or at once into the video, so that the memory does
not grow with their number.
"""

import hashlib
import logging
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import PartialState
from PIL import Image, ImageOps
from tqdm.auto import tqdm

from pipeline_dreampose import DreamPosePipeline
from training.engine.messages import shorten
from training.media.outputs import FRAME_NUMBER, check_output, write_frame
from training.media.pictures import (
    UnreadablePictures,
    enlarge,
    open_picture,
    picture_grid,
    poses_as_pictures,
    write_frames,
)
from training.media.settings_file import has_settings, partial_pattern, write_json


logger = logging.getLogger(__name__)

SETTINGS_NAME = "settings.json"


def digest(pictures: Iterable[Image.Image] | torch.Tensor) -> str:
    """Return a short hash of the sizes and pixels of pictures or pose maps, to recognise them."""
    if isinstance(pictures, torch.Tensor):
        pictures = [pictures.numpy()]
    hashed = hashlib.sha256()
    for picture in map(np.asarray, pictures):
        hashed.update(f"{picture.dtype} {picture.shape}".encode() + picture.tobytes())
    return hashed.hexdigest()[:16]


def model_digest(pipe: DreamPosePipeline) -> str:
    """Return a short hash of a pipeline's weights and of the settings of all its parts, including the scheduler."""
    hashed = hashlib.sha256()
    parts = {name: part for name, part in pipe.components.items() if part is not None} | {"pipeline": pipe}
    for name, component in sorted(parts.items()):
        config = getattr(component, "config", component)
        config = config if isinstance(config, dict) else config.to_dict()
        # Names with an underscore do not describe the model, for example the folder it was loaded from. The pipeline's
        # entries for its parts name modules of Python, which depend on how their code was imported.
        left_out = pipe.components if component is pipe else ()
        entries = [key for key in sorted(config) if not key.startswith("_") and key not in left_out]
        settings = {key: str(config[key]) for key in entries}
        hashed.update(f"{name} {type(component).__name__} {settings}".encode())
        if isinstance(component, torch.nn.Module):
            for key, tensor in component.state_dict().items():
                values = tensor.detach().contiguous().flatten().view(torch.uint8).cpu().numpy()
                hashed.update(f"{name}.{key} {tensor.dtype}".encode() + values.tobytes())
    return hashed.hexdigest()[:16]


def finished_frames(folder: Path, suffix: str = ".png", stem: str = FRAME_NUMBER) -> list[Path]:
    """Return the finished frames in a folder of an unfinished video, which need not exist.

    Their names are those that a run gives: the regular expression `stem`, then `suffix`. Other files are the user's.
    """
    return _matching(folder, f"(?:{stem}){re.escape(suffix)}")


def _matching(folder: Path, pattern: str) -> list[Path]:
    return [path for path in folder.glob("*") if re.fullmatch(pattern, path.name)]


def check_frames(
    folder: Path,
    resume: bool,
    overwrite: bool,
    suffix: str = ".png",
    unit: str = "frames",
    stem: str = FRAME_NUMBER,
) -> None:
    """Check that a run with finished frames has `resume`, which keeps them, or `overwrite`, which deletes them.

    Raises:
        ValueError: If there are finished frames and neither is given, or frames without the settings of a run, or a
            folder with a frame's name, or if the folder or its parent cannot be written.
    """
    check_output("output", folder.parent)
    if os.path.lexists(folder):
        check_output("output", folder)
    frames, where = finished_frames(folder, suffix, stem), shorten(str(folder))
    other = next((path.name for path in frames if not path.is_file()), None)
    if other is not None:
        raise ValueError(f"`output` must have {unit} that are files, got {where}, where {other} is none.")
    if frames and not (folder / SETTINGS_NAME).is_file():
        raise ValueError(
            f"`output` must have no {unit} but those of a run, got {where}, which has no {SETTINGS_NAME} of a run."
        )
    if frames and not resume and not overwrite:
        raise ValueError(
            f"{where} holds {unit} of a stopped run ({len(frames)}). Give `--resume` to continue that run, or"
            " `--overwrite` to delete them and start again."
        )


def open_frames(
    folder: Path,
    settings: dict[str, Any],
    resume: bool,
    suffix: str = ".png",
    unit: str = "frames",
    overwrite: bool = False,
    stem: str = FRAME_NUMBER,
) -> None:
    """Start a folder for the frames of an unfinished video, or `resume` the existing one, which keeps its frames.

    `settings` hold everything that the pixels depend on, as JSON. Each frame is a file with a name as in
    [`finished_frames`]; messages call them `unit`. `overwrite` deletes finished frames.

    Raises:
        ValueError: If the frames to keep were made with other settings, or as in `check_frames`.
    """
    check_frames(folder, resume, overwrite, suffix, unit, stem)
    if resume and has_settings(folder / SETTINGS_NAME, settings, "resume"):
        return
    remove_frames(folder, suffix, stem)
    write_json(folder / SETTINGS_NAME, settings)


def remove_frames(folder: Path, suffix: str = ".png", stem: str = FRAME_NUMBER) -> None:
    """Delete a run's files in the folder of `open_frames`, and the folder unless it holds other files."""
    if not (folder / SETTINGS_NAME).is_file():
        return
    partial = partial_pattern(f"(?:{stem}){re.escape(suffix)}|{re.escape(SETTINGS_NAME)}")
    for path in [*finished_frames(folder, suffix, stem), *_matching(folder, partial), folder / SETTINGS_NAME]:
        path.unlink()
    if not any(folder.iterdir()):
        folder.rmdir()


def frame_path(folder: Path, index: int) -> Path:
    return folder / f"{index:05d}.png"


def _is_whole(path: Path) -> bool:
    """Return whether a frame is there and can be read."""
    try:
        with open_picture(path) as frame:
            frame.load()
            return frame.format == "PNG"
    except UnreadablePictures:
        return False


def check_call(
    pipe: DreamPosePipeline, chunk_size: int = 8, few_steps: str | None = None, **call_options: Any
) -> dict[str, Any]:
    """Check a call's size, steps and scales, before anything is written, and return them. `None` is the default.

    `call_options` hold all five under the names of the pipeline's arguments. `few_steps` is the few-step LoRA in use.

    Raises:
        ValueError: If the pipeline refuses one of them.
    """
    values = {key: pipe.config[f"default_{key}"] if value is None else value for key, value in call_options.items()}
    numbers = dict(values)
    pipe.check_size(numbers.pop("height"), numbers.pop("width"))
    pipe.check_numbers(**numbers, chunk_size=chunk_size)
    try:
        with pipe.hold_scheduler(values["num_inference_steps"], pipe.device):
            return values
    except ValueError as error:
        if few_steps is None:
            raise
        advice = "`--no_fast` leaves out a model's own, whose steps are few"
        raise ValueError(f"{error} The scheduler is that of the LoRA {few_steps}; {advice}.") from error


def warn_about_size(pipe: DreamPosePipeline, height: int, width: int) -> None:
    """Warn if frames of this size in pixels are not those that the model was trained for."""
    own = pipe.config.default_height, pipe.config.default_width
    if (height, width) != own:
        logger.warning(
            f"The model was trained for frames of {own[0]} x {own[1]} pixels (height x width), so frames of {height} x"
            f" {width} may be smeared: leave out `--height` and `--width`, and enlarge the video with `--scale`."
        )


@contextmanager
def shown_stage(name: str) -> Iterator[None]:
    """Show the name of a stage in the place of a progress bar, in the main process."""
    is_main = PartialState().is_main_process
    with tqdm(total=0, desc=name, bar_format="{desc} ...", leave=False, disable=not is_main):
        yield


def fit_poses(
    pipe: DreamPosePipeline, poses: Sequence[Image.Image] | torch.Tensor, height: int, width: int
) -> torch.Tensor:
    """Convert the poses of a clip to maps of the latents' size, `[F, 2, h, w]`, which give the same frames.

    They need a hundredth of the memory or less. `height` and `width` are those of the frames in pixels.
    """
    parts = [poses] if isinstance(poses, torch.Tensor) else ([pose] for pose in poses)
    return torch.cat([pipe.prepare_pose_maps(part, height, width, batch_size=1)[0] for part in parts])


def render_frames(
    pipe: DreamPosePipeline,
    image: Image.Image,
    poses: Sequence[Image.Image] | torch.Tensor,
    folder: Path,
    seed: int = 0,
    chunk_size: int = 8,
    **call_options,
) -> Iterator[Image.Image]:
    """Yield all frames of a folder from `open_frames` in order, after rendering those that are missing or damaged.

    All processes share the rendering, and only the main one yields frames. Each is in the folder before it is
    yielded, and none is kept in memory.

    `poses` are those of all frames, and `call_options` further arguments of the pipeline. `chunk_size` frames are
    denoised together; a kill loses at most this many.
    """
    state, num_frames, num_yielded = PartialState(), len(poses), 0
    missing = [index for index in range(num_frames) if not _is_whole(frame_path(folder, index))]
    state.wait_for_everyone()  # all processes must share out the same list
    share = np.array_split(np.array(missing, dtype=int), state.num_processes)[state.process_index].tolist()
    pipe.set_progress_bar_config(disable=True)
    options = {"frame_indices": share, "chunk_size": chunk_size, **call_options}
    generator = torch.Generator().manual_seed(seed)
    rendered = pipe.stream(image, poses, generator=generator, **options) if share else []
    with tqdm(total=len(share), desc="frames", unit="frame", disable=not state.is_main_process) as progress_bar:
        for index, frame in zip(share, rendered, strict=True):
            write_frame(frame, frame_path(folder, index))
            progress_bar.update()
            if state.is_main_process:
                yield from (read_frame(folder, earlier) for earlier in range(num_yielded, index))
                yield frame
                num_yielded = index + 1
    state.wait_for_everyone()  # other processes render the rest
    if state.is_main_process:
        yield from (read_frame(folder, index) for index in range(num_yielded, num_frames))


def read_frame(folder: Path, index: int) -> Image.Image:
    """Read a frame that `render_frames` wrote."""
    with Image.open(frame_path(folder, index), formats=["PNG"]) as frame:
        frame.load()
    return frame


def render_grid(
    pipe: DreamPosePipeline,
    image: Image.Image,
    poses: Sequence[Image.Image] | torch.Tensor,
    image_scales: Sequence[float],
    pose_scales: Sequence[float],
    seed: int = 0,
    scale: int = 1,
    **call_options,
) -> Image.Image:
    """Render the clip's middle frame with every pair of guidance scales, as one labelled RGB picture.

    It has one row per image guidance scale and one column per pose guidance scale. All frames start from the same
    noise. `scale` enlarges each frame by a whole factor; the other arguments are those of `render_frames`.
    """
    pipe.set_progress_bar_config(disable=True)
    poses = poses if isinstance(poses, torch.Tensor) else list(poses)
    cells = []
    for image_scale, pose_scale in tqdm([(i, p) for i in image_scales for p in pose_scales], unit="pair"):
        options = {"frame_indices": [len(poses) // 2], **call_options}
        options |= {"image_guidance_scale": image_scale, "pose_guidance_scale": pose_scale}
        frame = pipe(image, poses, generator=torch.Generator().manual_seed(seed), **options).frames[0][0]
        cells.append(enlarge(frame, scale))
    rows = [cells[start : start + len(pose_scales)] for start in range(0, len(cells), len(pose_scales))]
    titles = [f"pose {value:g}" for value in pose_scales]
    return picture_grid(rows, titles, row_titles=[f"image {value:g}" for value in image_scales])


def default_scale(height: int) -> int:
    """Return the least whole factor that enlarges frames of this height to at least 320 pixels, at most 16."""
    return min(-(-320 // height), 16)


def _evenly_spaced(num_frames: int, num: int) -> list[int]:
    return np.linspace(0, num_frames - 1, min(num, num_frames)).round().astype(int).tolist()


def draw_strip(
    image: Image.Image,
    poses: Sequence[Image.Image],
    frames: list[Image.Image],
    num: int,
    truth: list[Image.Image] | None = None,
    driver: Sequence[Image.Image] | None = None,
) -> Image.Image:
    """Draw the photo and `num` evenly spaced frames next to it, in rows.

    The rows are the `driver`'s frames if given, the poses, `truth` if given, and the predictions.
    """
    size = frames[0].size
    chosen = _evenly_spaced(len(frames), num)
    pose_row = [ImageOps.pad(poses[i], size, Image.Resampling.NEAREST) for i in chosen]
    photo = ImageOps.pad(image, size, Image.Resampling.LANCZOS, color="white")
    true_rows = [] if truth is None else [[None, *(truth[i] for i in chosen)]]
    shown = [] if driver is None else [ImageOps.pad(driver[i], size, color="white") for i in chosen]
    driver_rows = [[None, *shown]] if shown else []
    return picture_grid([*driver_rows, [None, *pose_row], *true_rows, [photo, *(frames[i] for i in chosen)]])


def output_paths(output: Path, gif: bool = False) -> list[Path]:
    """Return the output paths of a video: the video itself, a GIF if `gif` is set, and last the PNG strip."""
    suffixes = [".gif", ".png"] if gif else [".png"]
    return list(dict.fromkeys([output, *map(output.with_suffix, suffixes)]))


def write_outputs(
    paths: list[Path],
    image: Image.Image,
    poses: Sequence[Image.Image] | torch.Tensor,
    frames: Iterable[Image.Image],
    folder: Path,
    fps: float = 30,
    scale: int = 1,
    strip_frames: int = 8,
    driver: Sequence[Image.Image] | None = None,
    sound: np.ndarray | None = None,
) -> None:
    """Write a video to the paths from `output_paths`, the last of which is for its strip of `strip_frames` frames.

    `frames` are those of [`render_frames`], which may be rendered while the video is written, and lie in `folder`. The
    photo, the `poses` and the `driver`'s frames are for the strip. `fps` are frames per second, and `scale` enlarges
    all pictures by a whole factor. `sound` is that of [`write_frames`].
    """
    write_frames((enlarge(frame, scale) for frame in frames), paths[0], fps, sound)
    with shown_stage("video"):
        for path in paths[1:-1]:
            saved = (read_frame(folder, index) for index in range(len(poses)))
            write_frames((enlarge(frame, scale) for frame in saved), path, fps)
        chosen = _evenly_spaced(len(poses), strip_frames)
        shown = [enlarge(read_frame(folder, index), scale) for index in chosen]
        poses = poses_as_pictures(poses[chosen] if isinstance(poses, torch.Tensor) else [poses[i] for i in chosen])
        driver = None if driver is None else [driver[index] for index in chosen]
        write_frame(draw_strip(image, poses, shown, len(chosen), driver=driver), paths[-1])
