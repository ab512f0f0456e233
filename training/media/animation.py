# Copyright 2026 The DreamPose for diffusers authors
# Licensed under the Apache License, Version 2.0
"""A video frame by frame on disk, so that processes share it and a killed run goes on; its strip; a grid of
guidance scales.

A frame depends on its window, the shared noise and the seed alone, so it does not matter who renders it and when.
"""

import hashlib
import os
import shutil
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import PartialState
from PIL import Image, ImageOps
from tqdm.auto import tqdm

from pipeline_dreampose import DreamPosePipeline, iuv_to_pose_map
from training.media.pictures import enlarge, picture_grid
from training.media.settings_file import has_settings, write_json


SETTINGS_NAME = "settings.json"


def digest(pictures: Iterable[Image.Image] | torch.Tensor) -> str:
    """Tell pictures (or maps) from others: a short hash of their sizes and pixels."""
    if isinstance(pictures, torch.Tensor):
        pictures = [pictures.numpy()]
    hashed = hashlib.sha256()
    for picture in map(np.asarray, pictures):
        hashed.update(f"{picture.dtype} {picture.shape}".encode() + picture.tobytes())
    return hashed.hexdigest()[:16]


def model_digest(pipe: DreamPosePipeline) -> str:
    """Tell a pipeline from others: a short hash of all weights, of whatever model, subject and precision, and of the
    settings of all parts, its scheduler's and its own among them."""
    hashed = hashlib.sha256()
    parts = {name: part for name, part in pipe.components.items() if part is not None} | {"pipeline": pipe}
    for name, component in sorted(parts.items()):
        config = getattr(component, "config", component)
        config = config if isinstance(config, dict) else config.to_dict()
        # Without what starts with an underscore: the folder that it was loaded from, and the like.
        settings = {key: str(value) for key, value in sorted(config.items()) if not key.startswith("_")}
        hashed.update(f"{name} {type(component).__name__} {settings}".encode())
        if isinstance(component, torch.nn.Module):
            for key, tensor in component.state_dict().items():
                values = tensor.detach().contiguous().flatten().view(torch.uint8).cpu().numpy()
                hashed.update(f"{name}.{key} {tensor.dtype}".encode() + values.tobytes())
    return hashed.hexdigest()[:16]


def open_frames(
    folder: Path, settings: dict[str, Any], resume: bool, suffix: str = ".png", unit: str = "frames"
) -> None:
    """Begin a folder of frames, or go on with the one that is there.

    Args:
        folder (`Path`): Where the frames of an unfinished video lie.
        settings (`dict[str, Any]`): All that its pixels depend on, as JSON.
        resume (`bool`): Go on; without it what is there is thrown away.
        suffix (`str`, *optional*, defaults to `".png"`): Of the files, one for each frame.
        unit (`str`, *optional*, defaults to `"frames"`): What they are, where they are none.
    Raises:
        ValueError: If the frames that are there were made with other settings; they are left as they are.
    """
    if resume and has_settings(folder / SETTINGS_NAME, settings, "resume"):
        return
    num_files = len(list(folder.glob(f"*{suffix}")))
    if num_files:
        print(f"{num_files} {unit} of a run that was stopped are thrown away, since `resume` was not asked for.")
    shutil.rmtree(folder, ignore_errors=True)
    write_json(folder / SETTINGS_NAME, settings)


def frame_path(folder: Path, index: int) -> Path:
    return folder / f"{index:05d}.png"


def write_frame(frame: Image.Image, path: Path) -> None:
    """Write a PNG that appears under its name when it is whole."""
    partial = path.with_name(f".{path.name}.partial")
    frame.save(partial, "PNG")
    os.replace(partial, path)


def render_frames(
    pipe: DreamPosePipeline,
    image: Image.Image,
    poses: list[Image.Image] | torch.Tensor,
    folder: Path,
    seed: int = 0,
    chunk_size: int = 8,
    **call_options,
) -> None:
    """Render the frames that `folder` lacks, each process its share; returns when all have them.

    Args:
        pipe (`DreamPosePipeline`): The model.
        image (`PIL.Image.Image`): The photo.
        poses (`list[PIL.Image.Image]` or `torch.Tensor`): Of all frames.
        folder (`Path`): Opened by `open_frames`, seen by all processes.
        seed (`int`, *optional*, defaults to 0): Of the noise.
        chunk_size (`int`, *optional*, defaults to 8): Frames denoised at a time; so many at most are lost by a kill.
        call_options: Passed to the pipeline.
    """
    state = PartialState()
    missing = [index for index in range(len(poses)) if not frame_path(folder, index).exists()]
    state.wait_for_everyone()  # until all have looked: the shares are those of one list
    share = np.array_split(np.array(missing, dtype=int), state.num_processes)[state.process_index].tolist()
    pipe.set_progress_bar_config(disable=True)
    if not isinstance(poses, torch.Tensor):  # once, not for every chunk
        poses = torch.stack([iuv_to_pose_map(pose) for pose in poses])
    with tqdm(total=len(share), desc="frames", unit="frame", disable=not state.is_main_process) as progress_bar:
        # A call a chunk encodes the photo anew for each, one pass of an encoder beside hundreds of the UNet.
        for start in range(0, len(share), chunk_size):
            indices = share[start : start + chunk_size]
            generator = torch.Generator().manual_seed(seed)
            options = {"frame_indices": indices, "chunk_size": chunk_size, **call_options}
            frames = pipe(image, poses, generator=generator, **options).frames[0]
            for index, frame in zip(indices, frames, strict=True):
                write_frame(frame, frame_path(folder, index))
            progress_bar.update(len(indices))
    state.wait_for_everyone()


def read_frames(folder: Path, num_frames: int) -> list[Image.Image]:
    """Read what `render_frames` wrote."""
    frames = []
    for index in range(num_frames):
        with Image.open(frame_path(folder, index)) as frame:
            frame.load()
        frames.append(frame)
    return frames


def render_grid(
    pipe: DreamPosePipeline,
    image: Image.Image,
    poses: list[Image.Image] | torch.Tensor,
    image_scales: Sequence[float],
    pose_scales: Sequence[float],
    seed: int = 0,
    scale: int = 1,
    **call_options,
) -> Image.Image:
    """Render the clip's middle frame with every pair of guidance scales, as a labelled picture.

    Args:
        pipe (`DreamPosePipeline`): The model.
        image (`PIL.Image.Image`): The photo.
        poses (`list[PIL.Image.Image]` or `torch.Tensor`): Of all frames.
        image_scales (`Sequence[float]`): Image guidance scales, one a row.
        pose_scales (`Sequence[float]`): Pose guidance scales, one a column.
        seed (`int`, *optional*, defaults to 0): Of the noise, the same for all.
        scale (`int`, *optional*, defaults to 1): Enlarges each picture by a whole factor.
        call_options: Passed to the pipeline.
    Returns:
        `PIL.Image.Image`: Mode RGB.
    """
    pipe.set_progress_bar_config(disable=True)
    cells = []
    for image_scale, pose_scale in tqdm([(i, p) for i in image_scales for p in pose_scales], unit="pair"):
        options = {"frame_indices": [len(poses) // 2], **call_options}
        options |= {"image_guidance_scale": image_scale, "pose_guidance_scale": pose_scale}
        frame = pipe(image, poses, generator=torch.Generator().manual_seed(seed), **options).frames[0][0]
        cells.append(enlarge(frame, scale))
    rows = [cells[start : start + len(pose_scales)] for start in range(0, len(cells), len(pose_scales))]
    titles = [f"pose {value:g}" for value in pose_scales]
    return picture_grid(rows, titles, row_titles=[f"image {value:g}" for value in image_scales])


def draw_strip(
    image: Image.Image,
    poses: list[Image.Image],
    frames: list[Image.Image],
    num: int,
    truth: list[Image.Image] | None = None,
) -> Image.Image:
    """The photo on the left, evenly chosen frames beside it: poses above, predictions below, and `truth`, if it is
    known, between them."""
    size = frames[0].size
    chosen = np.linspace(0, len(frames) - 1, min(num, len(frames))).round().astype(int)
    pose_row = [ImageOps.pad(poses[i], size, Image.Resampling.NEAREST) for i in chosen]
    photo = ImageOps.pad(image, size, Image.Resampling.LANCZOS, color="white")
    true_rows = [] if truth is None else [[None, *(truth[i] for i in chosen)]]
    return picture_grid([[None, *pose_row], *true_rows, [photo, *(frames[i] for i in chosen)]])
