# Copyright 2026 The DreamPose for diffusers authors
# Licensed under the Apache License, Version 2.0
r"""Convert the authors' released checkpoints to a pipeline, or those of one subject to a LoRA on such a pipeline.

python training/convert_original_checkpoint.py --unet unet_epoch_20.pth --adapter adapter_20.pth --output_dir dreampose
python training/convert_original_checkpoint.py --unet unet_epoch_499.pth --adapter adapter_499.pth \
    --vae vae_1499.pth --subject_of dreampose --rank 64 --output_dir alice
"""

import argparse
import os
from pathlib import Path

from training.engine.output_lock import locks_output
from training.options.command import CommandParser, run_command
from training.options.stage_one import DataOptions, ModelOptions


PARTS = ("unet", "adapter", "vae")
RANGES = ("minus_one_one", "zero_one")
# Options that only one of the two conversions takes, with their defaults.
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
    """Return the options of a command line."""
    epilog = (
        "It is not documented which ranges the released weights were trained with. The release's sampling uses\n"
        "[-1, 1] for pictures and poses; its training code, as last published, uses [0, 1]. If frames are pale or\n"
        "dark, or do not follow the poses, convert again with the other range."
    )
    usage = "%(prog)s --unet FILE --adapter FILE --output_dir FOLDER [--subject_of MODEL] [--OPTION VALUE ...]"
    parser = CommandParser(usage=usage, description=__doc__, epilog=epilog)
    add = parser.add_argument_group(
        "most used (checkpoints are .pth files of the release, of which only tensors are read)"
    ).add_argument
    add("--unet", type=Path, help="UNet, such as unet_epoch_20.pth")
    add("--adapter", type=Path, help="adapter, such as adapter_20.pth")
    add("--vae", type=Path, help="VAE, such as vae_1499.pth; without it, the base's VAE stays as it is")
    add("--output_dir", type=Path, required=True, help="folder for the pipeline or the subject's LoRA")
    add("--revision", help="branch, tag or commit of `--base` or `--subject_of` on the Hub")
    add = parser.add_argument_group("to make a pipeline").add_argument
    stable_diffusion = "Hub id or folder of the Stable Diffusion 1.x that the checkpoints were trained from"
    add("--base", help=f"{stable_diffusion} (default: {CONVERSION['base']})")
    encoder = CONVERSION["image_encoder_name_or_path"]
    add("--image_encoder_name_or_path", help=f"CLIP vision model of the release (default: {encoder})")
    add("--image_range", choices=RANGES, help="range of pictures at the VAE (default: minus_one_one; see below)")
    add("--pose_range", choices=RANGES, help="range of pose maps at the UNet (default: minus_one_one; see below)")
    add("--height", type=int, help=f"height of the training pictures (default: {CONVERSION['height']})")
    add("--width", type=int, help=f"width of the training pictures (default: {CONVERSION['width']})")
    add = parser.add_argument_group("to make a subject's LoRA").add_argument
    add("--subject_of", metavar="MODEL", help="make a LoRA on this DreamPose pipeline, a folder or Hub id")
    add("--rank", type=int, help=f"rank of the LoRA (default: {EXTRACTION['rank']})")
    add("--device", help="device that decomposes the weights in float64; by default CUDA if there is one")
    options = parser.parse_args(argv)
    check(parser, argv, options)
    for name, value in {**CONVERSION, **EXTRACTION}.items():
        if getattr(options, name) is None:
            setattr(options, name, value)
    options.checkpoints = {part: getattr(options, part) for part in PARTS if getattr(options, part) is not None}
    return options


def check(parser: CommandParser, argv: list[str] | None, options: argparse.Namespace) -> None:
    """End in the parser's error if options exclude each other."""
    others, rule = (EXTRACTION, "only with") if options.subject_of is None else (CONVERSION, "without")
    parser.refuse(argv, list(others), f"{rule} `--subject_of`")
    missing = [f"`--{part}`" for part in ("unet", "adapter") if getattr(options, part) is None]
    if options.subject_of is None and missing:
        parser.error(f"`--unet` and `--adapter` must be given for a pipeline, but {' and '.join(missing)} is missing.")
    if not (options.unet or options.adapter or options.vae):
        parser.error("`--unet`, `--adapter` or `--vae` must be given with `--subject_of`.")
    if os.path.isdir(options.subject_of or options.base or CONVERSION["base"]):
        parser.refuse(argv, ["revision"], "only with a model on the Hub")


@locks_output("output_dir", is_folder=True)
def main(options: argparse.Namespace) -> None:
    """Convert the checkpoints and write the result to `output_dir`."""
    from training.hub.card_writer import write_base_card
    from training.media.outputs import check_output
    from training.media.pictures import spare_inputs
    from training.models import conversion

    source = options.base if options.subject_of is None else options.subject_of
    spare_inputs("output_dir", [options.output_dir], [source])
    conversion.check_output_dir(options.output_dir, options.subject_of is not None)
    check_output("output_dir", options.output_dir)
    if options.subject_of is not None:
        how = (options.rank, options.output_dir, options.revision, options.device)
        print("\n".join(conversion.extract_subject(options.checkpoints, options.subject_of, *how)))
        return
    names = ("base", "image_encoder_name_or_path", "image_range", "pose_range", "height", "width", "revision")
    pipeline = conversion.convert_checkpoints(options.checkpoints, **{name: getattr(options, name) for name in names})
    pipeline.save_pretrained(options.output_dir)
    write_base_card(
        options.output_dir,
        repo_id=None,
        base_model=options.base,
        revision=options.revision,
        conversion=conversion.describe_conversion(pipeline, options.checkpoints),
    )
    ranges = f"image_range {options.image_range}, pose_range {options.pose_range}"
    print(f"Wrote the pipeline to {options.output_dir}, with {ranges}.")


if __name__ == "__main__":
    run_command(parse_args, main, "The checkpoints are unchanged. The same command converts them again.")
