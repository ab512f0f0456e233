# Copyright 2026 The DreamPose for diffusers authors
# Licensed under the Apache License, Version 2.0
"""Animate a person: one photo and a DensePose sequence in, a video out.

python animate.py --model model_card/tiny --image photo.png --poses poses/ --output video.mp4
accelerate launch --multi_gpu --num_processes 4 animate.py ...    # the frames are shared out
"""

import argparse
import shutil
from pathlib import Path

from accelerate import PartialState
from PIL import Image

from training.hub.repositories import load_pipeline
from training.media.animation import (
    digest,
    draw_strip,
    model_digest,
    open_frames,
    read_frames,
    render_frames,
    render_grid,
)
from training.media.pictures import enlarge, poses_as_pictures, read_photo, spare_inputs, write_frames
from training.poses.densepose import read_poses


CALL_OPTIONS = ("height", "width", "num_inference_steps", "image_guidance_scale", "pose_guidance_scale")


def scales(text: str) -> list[float]:
    """Numbers with commas between them."""
    return [float(word) for word in text.split(",")]


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="A photo and a DensePose sequence in, a video out.")
    add = parser.add_argument
    add("--model", required=True, help="pipeline folder or Hub id")
    add("--revision", help="branch, tag or commit of the model on the Hub")
    add("--lora", help="a subject trained on that model: file, folder or Hub id")
    add("--image", required=True, type=Path, help="photo of the person, facing the camera")
    poses = "folder of IUV pictures (R = V, G = U, B = I) or of the release's *_densepose.npy, lossless video, or .npy"
    add("--poses", required=True, type=Path, help=poses)
    add("--output", type=Path, help=".mp4, .gif or a folder of PNGs; a strip lies beside it (default: animation.mp4)")
    add("--resume", action="store_true", help="go on with the frames of a run that was stopped")
    add("--num_inference_steps", type=int, help="default: the model's own, as for the scales and sizes")
    add("--image_guidance_scale", type=float, help="how strongly the photo's appearance is held")
    add("--pose_guidance_scale", type=float, help="how strongly the pose is held")
    add("--height", type=int, help="of the frames, in pixels")
    add("--width", type=int, help="of the frames, in pixels")
    add("--fps", type=float, default=30, help="frames a second (default: 30)")
    add("--seed", type=int, default=0, help="of the noise that all frames share (default: 0)")
    add("--chunk_size", type=int, default=8, help="frames denoised at a time; does not alter the video")
    add("--device", help="cpu, cuda, mps, ... (default: the best there is)")
    add("--dtype", choices=["float32", "float16", "bfloat16"], help="default: float16 on CUDA")
    add("--scale", type=int, default=1, help="enlarge what is written by a whole factor (default: 1)")
    add("--strip_frames", type=int, default=8, help="frames shown in the PNG strip (default: 8)")
    add("--gif", action="store_true", help="write a GIF as well")
    grid = "instead of a video, the middle frame with all pairs of these scales, as in 1,2,5 1,3 (default: grid.png)"
    add("--grid", nargs=2, type=scales, metavar=("IMAGE_SCALES", "POSE_SCALES"), help=grid)
    options = parser.parse_args(argv)
    options.output = options.output or Path("grid.png" if options.grid else "animation.mp4")
    suffixes = [".png"] if options.grid else [".mp4", ".gif", ""]
    if options.output.suffix not in suffixes:
        named = " or ".join(suffixes[:2]) + ("" if options.grid else ", or be a folder without a dot")
        parser.error(f"`--output` must end in {named}, got {str(options.output)!r}.")
    for name in ("fps", "scale", "strip_frames", "chunk_size"):
        if not getattr(options, name) > 0:
            parser.error(f"`--{name}` must be positive, got {getattr(options, name)}.")
    return options


def beside(options: argparse.Namespace) -> list[Path]:
    """What is written beside the output: the GIF, if it is wanted, and the strip."""
    return [options.output.with_suffix(suffix) for suffix in ([".gif"] if options.gif else []) + [".png"]]


def write_outputs(
    options: argparse.Namespace, image: Image.Image, poses: list[Image.Image], frames: list[Image.Image]
) -> list[Path]:
    """Video (or GIF, or folder) and strip; their paths."""
    shown = [enlarge(frame, options.scale) for frame in frames]
    written = list(dict.fromkeys([options.output, *beside(options)]))
    for path in written[:-1]:
        write_frames(shown, path, options.fps)
    draw_strip(image, poses, shown, options.strip_frames).save(written[-1])
    return written


def main(options: argparse.Namespace) -> list[Image.Image]:
    spare_inputs("output", [options.output, *beside(options)], [options.image, options.poses])
    image, poses = read_photo(options.image), read_poses(options.poses)
    state = PartialState(cpu=options.device == "cpu")
    call_options = {name: getattr(options, name) for name in CALL_OPTIONS}
    settings = {"seed": options.seed, "image": digest([image]), "poses": digest(poses)} | call_options
    pipe = load_pipeline(options.model, options.device or state.device, options.dtype, options.lora, options.revision)
    options.output.parent.mkdir(parents=True, exist_ok=True)
    call_options["seed"] = options.seed
    if options.grid:
        if state.is_main_process:
            render_grid(pipe, image, poses, *options.grid, scale=options.scale, **call_options).save(options.output)
            print(f"{options.output}: frame {len(poses) // 2}, image scales downwards, pose scales to the right")
        return []
    folder = options.output.with_name(f".{options.output.name}.frames")
    with state.main_process_first():
        if state.is_main_process:
            open_frames(folder, settings | {"model": model_digest(pipe)}, options.resume)
    render_frames(pipe, image, poses, folder, chunk_size=options.chunk_size, **call_options)
    frames = read_frames(folder, len(poses))
    state.wait_for_everyone()  # before the folder goes
    if state.is_main_process:
        written = write_outputs(options, image, poses_as_pictures(poses), frames)
        shutil.rmtree(folder)
        print(f"{len(frames)} frames from {state.num_processes} process(es):", *written, sep="\n  ")
    return frames


if __name__ == "__main__":
    try:
        main(parse_args())
    except ValueError as error:
        raise SystemExit(f"animate.py: error: {error}") from None
