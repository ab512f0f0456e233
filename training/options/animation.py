# Copyright 2026 The DreamPose for diffusers authors
# Licensed under the Apache License, Version 2.0
"""Options of `animate.py`."""

import argparse
from collections.abc import Sequence
from pathlib import Path

from training.options.clips import add_loading_options, check_ranges, parse_loading
from training.options.command import CommandParser
from training.options.densepose import DENSEPOSE_HELP, add_person_options, pose_settings


SCALES = ("image_guidance_scale", "pose_guidance_scale")
VIDEO_ONLY = ("gif", "fps", "sound", "resume", "strip_frames", "chunk_size", *SCALES)
ALIGNMENTS = {
    "none": "the figure stands where the person of the poses stands",
    "place": "the poses are moved and scaled onto the photo's body, all alike",
    "body": "the poses are moved onto the photo's body and take its widths and lengths",
}


def _scales(text: str) -> list[float]:
    """Read numbers that are separated by commas."""
    return [float(word) for word in text.split(",")]


_scales.__name__ = "scales"  # for argparse's message


def _add_options(parser: CommandParser) -> None:
    group = parser.add_argument_group("most used")
    add = group.add_argument
    add("--model", required=True, help="pipeline folder or Hub id")
    add("--image", required=True, type=Path, metavar="PHOTO", help="photo of the person, facing the camera")
    one_of = group.add_mutually_exclusive_group(required=True).add_argument
    poses = (
        "folder of IUV pictures (R = V, G = U, B = I) or *_densepose.npy files, a lossless IUV video, or a .npy file"
    )
    one_of("--poses", type=Path, help=poses)
    one_of("--driving", type=Path, metavar="VIDEO", help="video of anybody who moves; needs --densepose")
    add("--densepose", metavar="MODEL", help=DENSEPOSE_HELP)
    output = ".mp4, .gif or a folder of PNGs (default: animation.mp4), with a strip of pictures as .png next to it"
    add("--output", type=Path, metavar="VIDEO", help=output)
    add("--lora", action="append", help="a subject, or a few-step LoRA: file, folder or Hub id; once or several times")
    add("--fps", type=float, help="frames per second (default: those of the poses' video, else 30)")
    add("--resume", action="store_true", help="continue a stopped run with its remaining frames")
    add("--overwrite", action="store_true", help="delete a stopped run's frames; replace files of any origin")
    add = parser.add_argument_group("driving").add_argument
    add("--start", type=int, default=0, metavar="FRAME", help="first frame of the video or poses; the first is 0")
    add("--end", type=int, metavar="FRAME", help="stop before this frame (default: at the end)")
    add("--every", type=int, default=1, metavar="N", help="take only every Nth frame")
    align = (
        "place moves and scales all poses onto the photo's body; body also gives them its widths and lengths"
        " (default: place with --image_iuv or --densepose, else none)"
    )
    add("--align", choices=list(ALIGNMENTS), help=align)
    add("--image_iuv", type=Path, metavar="PICTURE", help="IUV picture of the photo, instead of --densepose")
    add_person_options(add)
    add("--sound", action="store_true", help="give the video the sound of the driving video")
    add("--save_poses", type=Path, metavar="FOLDER", help="write the aligned poses to a folder, for --poses")
    group = parser.add_argument_group("sampling (the model's own values are the defaults)")
    add, one_of = group.add_argument, group.add_mutually_exclusive_group().add_argument
    fast = "sample by the model's few-step LoRA (default: if there is one, but not for --grid or a guidance scale)"
    one_of("--fast", action="store_true", default=None, help=fast)
    one_of("--no_fast", action="store_false", dest="fast", help="leave the model's few-step LoRA out")
    add("--image_guidance_scale", type=float, metavar="SCALE", help="how closely the video follows the photo")
    add("--pose_guidance_scale", type=float, metavar="SCALE", help="how closely the video follows the poses")
    add("--num_inference_steps", type=int, metavar="STEPS", help="denoising steps per frame")
    add("--height", type=int, help="height of the frames in pixels")
    add("--width", type=int, help="width of the frames in pixels")
    add("--seed", type=int, default=0, help="seed of the noise that all frames share")
    add("--chunk_size", type=int, default=8, help="frames per chunk; it affects memory, never the video")
    add_loading_options(add)
    add = parser.add_argument_group("output").add_argument
    scale = "enlarge what is written by a whole factor (default: the least that gives 320 pixels in height)"
    add("--scale", type=int, help=scale)
    add("--strip_frames", type=int, default=8, help="number of frames in the PNG strip")
    add("--gif", action="store_true", help="also write a GIF")
    grid = "draw no video but its middle frame with all pairs of scales, such as 1,2,5 1,3, to grid.png or `--output`"
    add("--grid", nargs=2, type=_scales, metavar=("IMAGE_SCALES", "POSE_SCALES"), help=grid)


def parse_animation(argv: Sequence[str] | None, description: str) -> argparse.Namespace:
    """Return the options of a command line. Raise a `ValueError` for a bad number.

    They have `settings` for the poses, and `own_fast`: whether a few-step LoRA of the model's own is used by default.
    """
    usage = "%(prog)s --model MODEL --image PHOTO (--poses POSES | --driving VIDEO --densepose MODEL) [--OPTION ...]"
    parser = CommandParser(usage=usage, description=description)
    _add_options(parser)
    options = parse_loading(parser, argv)
    options.output = options.output or Path("grid.png" if options.grid else "animation.mp4")
    suffixes = [".png"] if options.grid else [".mp4", ".gif", ""]
    if options.output.suffix not in suffixes or options.output.name in ("", ".."):
        named = ".png" if options.grid else ".mp4 or .gif, or be a folder without a dot"
        parser.error(f"`--output` must end in {named}, got {str(options.output)!r}.")
    check_ranges(options)
    if options.grid:
        parser.refuse(argv, VIDEO_ONLY, "without `--grid`")
    options.lora = options.lora or []
    # A few-step LoRA has its scales built in.
    options.own_fast = not options.grid and all(getattr(options, name) is None for name in SCALES)
    _check_driving(parser, argv, options)
    if options.output.suffix == "" and not options.gif:
        parser.refuse(argv, ["fps"], "only with `--gif` or an `--output` that ends in .mp4 or .gif")
    return options


def _check_driving(parser: CommandParser, argv: Sequence[str] | None, options: argparse.Namespace) -> None:
    """Refuse options that lack another one or have no effect, and add the default of `align`, and `settings`."""
    options.settings = pose_settings(parser, options)
    if options.end is not None and options.end <= options.start:
        parser.error(f"`--end` must be more than `--start`, {options.start}, got {options.end}.")
    if options.driving is not None and options.densepose is None:
        parser.error(f"`--densepose` must be given with `--driving`, got {str(options.driving)!r} without it.")
    if options.densepose is None:
        parser.refuse(argv, ["person", "max_gap", "median"], "only with `--densepose`")
    if options.align is None:
        options.align = "none" if options.densepose is None and options.image_iuv is None else "place"
    elif options.align == "none":
        parser.refuse(argv, ["image_iuv"], "without `--align none`")
        if options.driving is None:
            parser.refuse(argv, ["densepose"], "with `--driving`, or without `--align none`")
    elif options.densepose is None and options.image_iuv is None:
        parser.refuse(argv, ["align"], "with `--image_iuv` or `--densepose`, to know the photo's body")
    if options.driving is None:
        parser.refuse(argv, ["sound"], "only with `--driving`")
        if options.image_iuv is not None:
            parser.refuse(argv, ["densepose"], "with `--driving`, or without `--image_iuv`")
    if options.save_poses is not None and options.save_poses.resolve() == options.output.resolve():
        parser.error(f"`--save_poses` must be another folder than `--output`, got {str(options.output)!r} for both.")
    if options.sound:
        parser.refuse(argv, ["fps"], "without `--sound`, which keeps the video's own time")
        if options.output.suffix != ".mp4":
            parser.refuse(argv, ["sound"], "only with an `--output` that ends in .mp4")
