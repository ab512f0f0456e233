# Copyright 2026 The DreamPose for diffusers authors
# Licensed under the Apache License, Version 2.0
"""Animate a person: make a video from one photo and a DensePose pose sequence.

python animate.py --model model_card/tiny --image photo.png --poses poses/ --output video.mp4
accelerate launch --multi_gpu --num_processes 4 animate.py ...    # spreads the frames over 4 GPUs
"""

import argparse
from pathlib import Path

from training.engine.output_lock import locks_output
from training.options.clips import add_loading_options, check_ranges, parse_loading
from training.options.command import CommandParser, run_command


VIDEO_ONLY = ("gif", "fps", "resume", "strip_frames", "chunk_size", "image_guidance_scale", "pose_guidance_scale")
CALL_OPTIONS = ("height", "width", "num_inference_steps", "image_guidance_scale", "pose_guidance_scale")


def scales(text: str) -> list[float]:
    """Read numbers that are separated by commas."""
    return [float(word) for word in text.split(",")]


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Return the options of a command line. Raise a `ValueError` for a number out of its range."""
    usage = "%(prog)s --model MODEL --image PHOTO --poses POSES [--output VIDEO] [--OPTION VALUE ...]"
    parser = CommandParser(usage=usage, description=__doc__)
    add = parser.add_argument_group("most used").add_argument
    add("--model", required=True, help="pipeline folder or Hub id")
    add("--image", required=True, type=Path, metavar="PHOTO", help="photo of the person, facing the camera")
    poses = (
        "folder of IUV pictures (R = V, G = U, B = I) or *_densepose.npy files, a lossless IUV video, or a .npy file"
    )
    add("--poses", required=True, type=Path, help=poses)
    output = ".mp4, .gif or a folder of PNGs (default: animation.mp4), with a strip of pictures as .png next to it"
    add("--output", type=Path, metavar="VIDEO", help=output)
    add("--lora", help="a subject trained on that model: file, folder or Hub id")
    add("--image_guidance_scale", type=float, metavar="SCALE", help="how closely the video follows the photo")
    add("--pose_guidance_scale", type=float, metavar="SCALE", help="how closely the video follows the poses")
    add("--fps", type=float, default=30, help="frames per second")
    add("--resume", action="store_true", help="continue a stopped run with its remaining frames")
    add("--overwrite", action="store_true", help="delete a stopped run's frames; replace files of any origin")
    add = parser.add_argument_group("sampling (the model's own values are the defaults)").add_argument
    add("--num_inference_steps", type=int, metavar="STEPS", help="denoising steps per frame")
    add("--height", type=int, help="height of the frames in pixels")
    add("--width", type=int, help="width of the frames in pixels")
    add("--seed", type=int, default=0, help="seed of the noise that all frames share")
    add("--chunk_size", type=int, default=8, help="frames per chunk; it affects memory, never the video")
    add_loading_options(add)
    add = parser.add_argument_group("output").add_argument
    add("--scale", type=int, default=1, help="enlarge what is written by a whole factor")
    add("--strip_frames", type=int, default=8, help="number of frames in the PNG strip")
    add("--gif", action="store_true", help="also write a GIF")
    grid = "draw no video but its middle frame with all pairs of scales, such as 1,2,5 1,3, to grid.png or `--output`"
    add("--grid", nargs=2, type=scales, metavar=("IMAGE_SCALES", "POSE_SCALES"), help=grid)
    options = parse_loading(parser, argv)
    options.output = options.output or Path("grid.png" if options.grid else "animation.mp4")
    suffixes = [".png"] if options.grid else [".mp4", ".gif", ""]
    if options.output.suffix not in suffixes or options.output.name in ("", ".."):
        named = ".png" if options.grid else ".mp4 or .gif, or be a folder without a dot"
        parser.error(f"`--output` must end in {named}, got {str(options.output)!r}.")
    check_ranges(options)
    if options.grid:
        parser.refuse(argv, VIDEO_ONLY, "without `--grid`")
    elif options.output.suffix == "" and not options.gif:
        parser.refuse(argv, ["fps"], "only with `--gif` or an `--output` that ends in .mp4 or .gif")
    return options


@locks_output("output", is_folder=False)
def main(options: argparse.Namespace) -> list:
    """Render the frames, write the video, and return the rendered frames as PIL images."""
    from accelerate import PartialState

    from training.hub.repositories import load_pipeline
    from training.media import animation
    from training.media.outputs import check_outputs, record_files
    from training.media.pictures import poses_as_pictures, read_photo, spare_inputs
    from training.poses.pose_files import read_poses

    written = animation.output_paths(options.output, options.gif)
    spare_inputs("output", written, [options.image, options.poses])
    check_outputs("output", written, options.overwrite)
    folder = options.output.with_name(f".{options.output.name}.frames")
    if not options.grid:
        animation.check_frames(folder, options.resume, options.overwrite)
    image, poses = read_photo(options.image), read_poses(options.poses)
    state = PartialState(cpu=options.device == "cpu")
    call_options = {name: getattr(options, name) for name in CALL_OPTIONS}
    pipe = load_pipeline(options.model, options.device or state.device, options.dtype, options.lora, options.revision)
    animation.check_call(pipe, options.chunk_size, **call_options)
    if options.grid:
        if state.is_main_process:
            record_files(written)
            how = *options.grid, options.seed, options.scale
            animation.write_frame(animation.render_grid(pipe, image, poses, *how, **call_options), options.output)
            print(f"{options.output}: frame {len(poses) // 2}, image scales downwards, pose scales to the right")
        return []
    settings = {"seed": options.seed, "image": animation.digest([image]), "poses": animation.digest(poses)}
    settings |= call_options | {"model": animation.model_digest(pipe)}
    with state.main_process_first():
        if state.is_main_process:
            animation.open_frames(folder, settings, options.resume, overwrite=options.overwrite)
            record_files(written)  # now, so that a resumed run may write them
    animation.render_frames(pipe, image, poses, folder, options.seed, options.chunk_size, **call_options)
    frames = animation.read_frames(folder, len(poses))
    state.wait_for_everyone()  # before the folder is removed
    if state.is_main_process:
        pictures = image, poses_as_pictures(poses), frames
        animation.write_outputs(written, *pictures, options.fps, options.scale, options.strip_frames)
        animation.remove_frames(folder)
        print(f"{len(frames)} frames from {state.num_processes} process(es):", *written, sep="\n  ")
    return frames


if __name__ == "__main__":
    kept = "The finished frames are kept. The same command with `--resume` renders the others."
    run_command(parse_args, main, kept, extra=None)
