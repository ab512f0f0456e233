# Copyright 2026 The DreamPose for diffusers authors
# Licensed under the Apache License, Version 2.0
"""Poses of a clip of one's own, as the IUV frames that `animate.py --poses` takes.

python training/extract_poses.py --input dance.mp4 --densepose model.pt --output_dir poses
python training/extract_poses.py --input densepose.pkl --size 640 512 --output_dir poses
"""

import argparse
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from tqdm.auto import tqdm

from training.data.densepose import CHANNEL_ORDERS, fill_gaps, find_channel_order, read_poses, temporal_median
from training.data.detections import PERSON_RULES, follow_person, paste, read_dump
from training.data.estimator import DensePoseEstimator
from training.pictures import iterate_pictures, spare_inputs, write_picture_folder


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Poses of a clip, as the IUV frames that animate.py takes.")
    add = parser.add_argument
    source = "with --densepose a video or a folder of pictures; else a detectron2 dump (.pkl) or any IUV that exists"
    add("--input", required=True, type=Path, help=source)
    add("--densepose", type=Path, help="TorchScript DensePose, from a source that you trust: its code is run")
    add("--output_dir", required=True, type=Path, help="folder of the IUV frames")
    add("--size", nargs=2, type=int, metavar=("HEIGHT", "WIDTH"), help="of the frames, which a dump does not tell")
    add("--channel_order", choices=["auto", *CHANNEL_ORDERS], default="auto", help="of IUV pictures (default: auto)")
    add("--person", choices=PERSON_RULES, default=PERSON_RULES[0], help="whom to follow (default: the largest)")
    add("--max_gap", type=int, default=5, help="frames without the person that are filled (default: 5)")
    add("--median", type=int, default=0, metavar="RADIUS", help="calm flicker of U and V (default: 0, off)")
    add("--device", default="cpu", help="of DensePose (default: cpu)")
    options = parser.parse_args(argv)
    if options.input.suffix == ".pkl" and (options.size is None or min(options.size) < 1):
        parser.error(f"`--size` must be given for a dump, in pixels, got {options.size}.")
    for name in ("max_gap", "median"):
        if getattr(options, name) < 0:
            parser.error(f"`--{name}` must be at least 0, got {getattr(options, name)}.")
    return options


def follow(clip: list, height: int, width: int, options: argparse.Namespace) -> list[np.ndarray]:
    """Detections of all frames -> IUV of one person."""
    chosen = follow_person(clip, height, width, options.person)
    frames, filled = fill_gaps([d if d is None else paste(d, height, width) for d in chosen], options.max_gap)
    if filled:
        print(f"frames without the person, filled from their neighbours: {filled}")
    return frames


def estimate(options: argparse.Namespace) -> list[np.ndarray]:
    """IUV of a video or pictures, by DensePose."""
    estimator, clip, size = DensePoseEstimator(options.densepose, options.device), [], None
    for picture in tqdm(iterate_pictures(options.input), desc="DensePose", unit="frame"):
        size = size or picture.size
        if picture.size != size:
            raise ValueError(f"`input` must have pictures of one size, got {size} and {picture.size}.")
        clip += estimator([picture])
    if size is None:
        raise ValueError(f"`input` must have at least one frame, got {str(options.input)!r}, which has none.")
    return follow(clip, size[1], size[0], options)


def convert(options: argparse.Namespace) -> list[np.ndarray] | torch.Tensor:
    """IUV (or maps, where there is no I) from files that DensePose wrote."""
    if options.input.suffix == ".pkl":
        clip, (height, width) = [detections for _, detections in read_dump(options.input)], options.size
        ends = np.array([detection.box[2:] for detections in clip for detection in detections]).reshape(-1, 2)
        if len(ends) and (ends.max(axis=0) > (width + 2, height + 2)).any():
            right, bottom = ends.max(axis=0)
            raise ValueError(
                f"`size` must hold people down to {bottom} and to {right} at the right, got {options.size}."
            )
        return follow(clip, height, width, options)
    poses = read_poses(options.input)
    if isinstance(poses, torch.Tensor):
        return poses
    frames, order = [np.asarray(pose) for pose in poses], options.channel_order
    if order == "auto":
        order, notice = find_channel_order(frames)
        if notice:
            print(f"notice: {notice}; --channel_order decides")
    return [np.ascontiguousarray(frame[..., CHANNEL_ORDERS[order]]) for frame in frames]


def main(options: argparse.Namespace) -> None:
    spare_inputs("output_dir", [options.output_dir], [options.input])
    frames = estimate(options) if options.densepose else convert(options)
    if isinstance(frames, torch.Tensor):
        options.output_dir.mkdir(parents=True, exist_ok=True)
        path = options.output_dir / "poses.npy"
        np.save(path, frames.numpy())
        print(f"{len(frames)} pose maps (U and V, there was no I): {path}")
        return
    if options.median:
        frames = temporal_median(frames, options.median)
    write_picture_folder([Image.fromarray(frame) for frame in frames], options.output_dir)
    print(f"{len(frames)} IUV frames: {options.output_dir}")


if __name__ == "__main__":
    try:
        main(parse_args())
    except ValueError as error:
        raise SystemExit(f"extract_poses.py: error: {error}") from None
