# Copyright 2026 The DreamPose for diffusers authors
# Licensed under the Apache License, Version 2.0
"""Animate a person: make a video from one photo, and a DensePose pose sequence or a video of somebody who moves.

python animate.py --model model_card/tiny --image photo.png --poses poses/ --output video.mp4
python animate.py --model MODEL --image photo.jpg --driving dance.mp4 --densepose model.pt --output video.mp4
accelerate launch --multi_gpu --num_processes 4 animate.py ...    # spreads the frames over 4 GPUs
"""

import argparse
from collections import deque
from pathlib import Path

from training.engine.messages import count
from training.engine.output_lock import locks_output
from training.options.animation import ALIGNMENTS, parse_animation
from training.options.command import run_command


CALL_OPTIONS = ("height", "width", "num_inference_steps", "image_guidance_scale", "pose_guidance_scale")
POSE_OPTIONS = ("poses", "driving", "densepose", "image_iuv", "align", "settings", "start", "end", "every", "sound")


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Return the options of a command line. Raise a `ValueError` for a number out of its range."""
    return parse_animation(argv, __doc__)


def check_paths(options: argparse.Namespace) -> tuple[list[Path], Path]:
    """Check where the command writes, and return the output's paths and the folder of unfinished frames."""
    from training.media import animation
    from training.media.outputs import check_outputs
    from training.media.pictures import spare_inputs
    from training.poses.pose_folder import check_pose_folder

    written = animation.output_paths(options.output, options.gif)
    inputs = [options.image, options.poses, options.driving, options.image_iuv, options.densepose]
    spare_inputs("output", written, inputs)
    check_outputs("output", written, options.overwrite)
    if options.save_poses is not None:
        spare_inputs("save_poses", [options.save_poses], inputs)
        check_pose_folder("save_poses", options.save_poses)
    folder = options.output.with_name(f".{options.output.name}.frames")
    if not options.grid:
        animation.check_frames(folder, options.resume, options.overwrite)
    return written, folder


@locks_output("output", is_folder=False)
def main(options: argparse.Namespace) -> None:
    """Render the frames and write them into the video one by one."""
    from accelerate import PartialState

    from training.hub.loras import choose_loras, fuse_loras
    from training.hub.repositories import load_pipeline
    from training.media import animation
    from training.media.outputs import record_files
    from training.media.pictures import read_photo
    from training.poses.driving import PoseSource
    from training.poses.pose_folder import write_poses

    written, folder = check_paths(options)
    state = PartialState(cpu=options.device == "cpu")
    image, device = read_photo(options.image), options.device or state.device
    given = {name: getattr(options, name) for name in POSE_OPTIONS}
    source = PoseSource(image, options.output.parent, device, **given)
    loras, few_steps = choose_loras(options.lora, options.model, options.revision, options.fast, options.own_fast)
    pipe = load_pipeline(options.model, device, options.dtype, revision=options.revision)
    fuse_loras(pipe, loras, own=None if few_steps in options.lora else few_steps)
    given = {name: getattr(options, name) for name in CALL_OPTIONS}
    call_options = animation.check_call(pipe, options.chunk_size, few_steps, **given)
    size, steps = (call_options["height"], call_options["width"]), call_options["num_inference_steps"]
    if state.is_main_process:
        animation.warn_about_size(pipe, *size)
    driver = source.read(*size)
    poses, scale = animation.fit_poses(pipe, driver.poses, *size), options.scale or animation.default_scale(size[0])
    if options.save_poses is not None and state.is_main_process:
        write_poses(driver.poses, options.save_poses, "save_poses", driver.fps)
    if options.grid:
        if state.is_main_process:
            print_choices(options, few_steps, steps)
            record_files(written)
            how = *options.grid, options.seed, scale
            animation.write_frame(animation.render_grid(pipe, image, poses, *how, **call_options), options.output)
            print(f"{options.output}: frame {len(poses) // 2}, image scales downwards, pose scales to the right")
        return
    settings = {"seed": options.seed, "image": animation.digest([image]), "poses": animation.digest(poses)}
    settings |= call_options | {"few_steps": few_steps is not None, "model": animation.model_digest(pipe)}
    with state.main_process_first():
        if state.is_main_process:
            animation.open_frames(folder, settings, options.resume, overwrite=options.overwrite)
            record_files(written)  # now, so that a resumed run may write them
            print_choices(options, few_steps, steps)
    frames = animation.render_frames(pipe, image, poses, folder, options.seed, options.chunk_size, **call_options)
    if state.is_main_process:
        how = options.fps or driver.fps or 30, scale, options.strip_frames, driver.pictures, driver.sound
        animation.write_outputs(written, image, driver.poses, frames, folder, *how)
        animation.remove_frames(folder)
        print(f"{len(poses)} frames from {state.num_processes} process(es):", *written, sep="\n  ")
    else:
        deque(frames, maxlen=0)  # renders its share


def print_choices(options: argparse.Namespace, few_steps: str | None, steps: int) -> None:
    """Print what defaults have chosen, when nothing can be refused any more."""
    if few_steps is not None:
        print(f"--fast: {count(steps, 'step')} per frame, by the few-step LoRA {few_steps}")
    if options.driving is not None or options.align != "none":
        print(f"--align {options.align}: {ALIGNMENTS[options.align]}")


if __name__ == "__main__":
    kept = "The finished frames are kept. The same command with `--resume` renders the others."
    run_command(parse_args, main, kept, extra=None)
