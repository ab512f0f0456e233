# Copyright 2026 The DreamPose for diffusers authors
# Licensed under the Apache License, Version 2.0
"""The authors' released checkpoints as a pipeline; those of one subject as a LoRA on such a pipeline.

python training/convert_original_checkpoint.py --unet unet_epoch_20.pth --adapter adapter_20.pth --output_dir dreampose
python training/convert_original_checkpoint.py --unet unet_epoch_499.pth --adapter adapter_499.pth \
    --vae vae_1499.pth --subject_of dreampose --rank 64 --output_dir alice
"""

import argparse
from pathlib import Path

from training.hub.model_card import write_base_card
from training.media.pictures import spare_inputs
from training.models.conversion import (
    RANGES,
    check_output_dir,
    convert_checkpoints,
    describe_conversion,
    extract_subject,
)
from training.options.run import DataOptions, ModelOptions


PARTS = ("unet", "adapter", "vae")
# What only one of the two does takes, and what it is if not given.
CONVERSION = {
    "base": ModelOptions.pretrained_model_name_or_path,
    "image_encoder_name_or_path": ModelOptions.image_encoder_name_or_path,
    "image_range": "minus_one_one",
    "pose_range": "minus_one_one",
    "height": DataOptions.height,
    "width": DataOptions.width,
}
EXTRACTION = {"rank": 16, "device": None}


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description="The authors' released checkpoints as a pipeline, or those of a subject as a LoRA.",
        epilog="Which ranges the released weights were trained with is not documented. The release's sampling"
        " starts, reads poses and decodes in [-1, 1]; its training code, as published last, has all in [0, 1]. Frames"
        " that come out pale or dark, or do not follow the poses, ask for the other choice.",
    )
    add = parser.add_argument
    checkpoint = "checkpoint (.pth) of the release; only tensors are read, never code"
    add("--unet", type=Path, help=f"{checkpoint}, such as unet_epoch_20.pth")
    add("--adapter", type=Path, help=f"{checkpoint}, such as adapter_20.pth")
    vae = "such as vae_1499.pth (default: the base's; with --subject_of: the LoRA leaves the VAE as it is)"
    add("--vae", type=Path, help=f"{checkpoint}, {vae}")
    add("--output_dir", type=Path, required=True, help="folder of the pipeline, or of the subject's LoRA")
    stable_diffusion = "Hub id or folder of the Stable Diffusion 1.x that they were trained from"
    add("--base", help=f"{stable_diffusion} (default: {CONVERSION['base']})")
    add("--revision", help="branch, tag or commit of --base or --subject_of on the Hub")
    encoder = CONVERSION["image_encoder_name_or_path"]
    add("--image_encoder_name_or_path", help=f"CLIP vision model of the release (default: {encoder})")
    add("--image_range", choices=RANGES, help="of pictures at the VAE (default: minus_one_one; see below)")
    add("--pose_range", choices=RANGES, help="of pose maps at the UNet (default: minus_one_one; see below)")
    add("--height", type=int, help=f"of the pictures that it was trained with (default: {CONVERSION['height']})")
    add("--width", type=int, help=f"of the pictures that it was trained with (default: {CONVERSION['width']})")
    subject = "write a subject's checkpoints as a LoRA on this DreamPose pipeline, a folder or Hub id"
    add("--subject_of", metavar="BASE", help=subject)
    add("--rank", type=int, help=f"with --subject_of: of the LoRA (default: {EXTRACTION['rank']})")
    add("--device", help="with --subject_of: decomposes the weights, in float64 (default: cuda if there is one)")
    options = parser.parse_args(argv)
    check(parser, options)
    for name, value in {**CONVERSION, **EXTRACTION}.items():
        if getattr(options, name) is None:
            setattr(options, name, value)
    options.checkpoints = {part: getattr(options, part) for part in PARTS if getattr(options, part) is not None}
    return options


def check(parser: argparse.ArgumentParser, options: argparse.Namespace) -> None:
    """End in the parser's error where options do not go together."""
    others, rule = (EXTRACTION, "only with") if options.subject_of is None else (CONVERSION, "not with")
    for name in others:
        if getattr(options, name) is not None:
            parser.error(f"`--{name}` must be given {rule} `--subject_of`, got {getattr(options, name)}.")
    if options.subject_of is None and (options.unet is None or options.adapter is None):
        parser.error(f"`--unet` and `--adapter` must be given, got {options.unet} and {options.adapter}.")
    if not (options.unet or options.adapter or options.vae):
        parser.error("`--unet`, `--adapter` or `--vae` must be given with `--subject_of`, got none.")


def main(options: argparse.Namespace) -> None:
    source = options.base if options.subject_of is None else options.subject_of
    spare_inputs("output_dir", [options.output_dir], [source])
    check_output_dir(options.output_dir, options.subject_of is not None)
    if options.subject_of is not None:
        how = (options.rank, options.output_dir, options.revision, options.device)
        print("\n".join(extract_subject(options.checkpoints, options.subject_of, *how)))
        return
    names = ("base", "image_encoder_name_or_path", "image_range", "pose_range", "height", "width", "revision")
    pipeline = convert_checkpoints(options.checkpoints, **{name: getattr(options, name) for name in names})
    pipeline.save_pretrained(options.output_dir)
    write_base_card(
        options.output_dir,
        repo_id=None,
        base_model=options.base,
        revision=options.revision,
        conversion=describe_conversion(pipeline, options.checkpoints),
    )
    ranges = f"image_range {options.image_range}, pose_range {options.pose_range}"
    print(f"Wrote the pipeline to {options.output_dir}, with {ranges}.")


if __name__ == "__main__":
    try:
        main(parse_args())
    except ValueError as error:
        raise SystemExit(f"convert_original_checkpoint.py: error: {error}") from None
