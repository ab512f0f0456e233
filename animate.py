# Copyright 2026 The DreamPose for diffusers authors
# Licensed under the Apache License, Version 2.0
"""Animate a person: one photo and a DensePose sequence in, a video out.

python animate.py --model model_card/tiny --image photo.png --poses poses/ --output video.mp4
accelerate launch --multi_gpu --num_processes 4 animate.py ...    # the frames are shared out
"""

import argparse
from pathlib import Path

import numpy as np
import torch
from accelerate import PartialState
from accelerate.utils import gather_object
from PIL import Image, ImageOps

from pipeline_dreampose import DreamPosePipeline
from training.hub import load_pipeline
from training.pictures import enlarge, picture_grid, poses_as_pictures, read_photo, read_poses, write_gif, write_video


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="A photo and a DensePose sequence in, a video out.")
    parser.add_argument("--model", required=True, help="pipeline folder or Hub id")
    parser.add_argument("--image", required=True, type=Path, help="photo of the person, facing the camera")
    parser.add_argument(
        "--poses", required=True, type=Path, help="folder of IUV pictures (R = V, G = U, B = I) or .npy"
    )
    parser.add_argument(
        "--output", type=Path, default=Path("animation.mp4"), help="the .mp4; the strip lies beside it"
    )
    parser.add_argument(
        "--num_inference_steps", type=int, help="default: the model's own, as for the scales and sizes"
    )
    parser.add_argument("--image_guidance_scale", type=float, help="how strongly the photo's appearance is held")
    parser.add_argument("--pose_guidance_scale", type=float, help="how strongly the pose is held")
    parser.add_argument("--height", type=int, help="of the frames, in pixels")
    parser.add_argument("--width", type=int, help="of the frames, in pixels")
    parser.add_argument("--fps", type=float, default=30, help="frames a second (default: 30)")
    parser.add_argument("--seed", type=int, default=0, help="of the noise that all frames share (default: 0)")
    parser.add_argument(
        "--chunk_size", type=int, default=8, help="frames denoised at a time; does not alter the video"
    )
    parser.add_argument("--device", help="cpu, cuda, mps, ... (default: the best there is)")
    parser.add_argument("--dtype", choices=["float32", "float16", "bfloat16"], help="default: float16 on CUDA")
    parser.add_argument("--scale", type=int, default=1, help="enlarge what is written by a whole factor (default: 1)")
    parser.add_argument("--strip_frames", type=int, default=8, help="frames shown in the PNG strip (default: 8)")
    parser.add_argument("--gif", action="store_true", help="write a GIF as well")
    options = parser.parse_args(argv)
    if options.output.suffix != ".mp4":
        parser.error(f"`--output` must end in .mp4, got {str(options.output)!r}.")
    for name in ("fps", "scale", "strip_frames", "chunk_size"):
        if not getattr(options, name) > 0:
            parser.error(f"`--{name}` must be positive, got {getattr(options, name)}.")
    return options


def render(
    pipe: DreamPosePipeline,
    image: Image.Image,
    poses: list[Image.Image] | torch.Tensor,
    options: argparse.Namespace,
) -> list[Image.Image]:
    """Render all frames, each process its share: a frame depends on its window, the noise and the seed alone."""
    state = PartialState()
    frame_indices = np.array_split(np.arange(len(poses)), state.num_processes)[state.process_index].tolist()
    frames = []
    if frame_indices:
        frames = pipe(
            image,
            poses,
            height=options.height,
            width=options.width,
            num_inference_steps=options.num_inference_steps,
            image_guidance_scale=options.image_guidance_scale,
            pose_guidance_scale=options.pose_guidance_scale,
            frame_indices=frame_indices,
            generator=torch.Generator().manual_seed(options.seed),
            chunk_size=options.chunk_size,
        ).frames[0]
    return gather_object(frames)


def draw_strip(image: Image.Image, poses: list[Image.Image], frames: list[Image.Image], num: int) -> Image.Image:
    """The photo on the left, evenly chosen frames beside it: poses above, predictions below."""
    size = frames[0].size
    chosen = np.linspace(0, len(frames) - 1, min(num, len(frames))).round().astype(int)
    pose_row = [ImageOps.pad(poses[i], size, Image.Resampling.NEAREST) for i in chosen]
    photo = ImageOps.pad(image, size, Image.Resampling.LANCZOS, color="white")
    return picture_grid([[None, *pose_row], [photo, *(frames[i] for i in chosen)]])


def main(options: argparse.Namespace) -> list[Image.Image]:
    image, poses = read_photo(options.image), read_poses(options.poses)
    state = PartialState(cpu=options.device == "cpu")
    pipe = load_pipeline(options.model, options.device or state.device, options.dtype)
    pipe.set_progress_bar_config(disable=not state.is_main_process)
    frames = render(pipe, image, poses, options)
    if state.is_main_process:
        shown = [enlarge(frame, options.scale) for frame in frames]
        video, strip, gif = (options.output.with_suffix(suffix) for suffix in (".mp4", ".png", ".gif"))
        write_video(shown, video, options.fps)
        draw_strip(image, poses_as_pictures(poses), shown, options.strip_frames).save(strip)
        if options.gif:
            write_gif(shown, gif, options.fps)
        written = [video, strip, gif] if options.gif else [video, strip]
        print(f"{len(frames)} frames from {state.num_processes} process(es):", *written, sep="\n  ")
    return frames


if __name__ == "__main__":
    try:
        main(parse_args())
    except ValueError as error:
        raise SystemExit(f"animate.py: error: {error}") from None
