# Copyright 2026 The DreamPose for diffusers authors
# Licensed under the Apache License, Version 2.0
"""Measure a saved pipeline on held-out clips, and baselines to compare it with.

python training/evaluation.py --model model_card/tiny --dataset procedural --split test --output results
accelerate launch --multi_gpu --num_processes 4 training/evaluation.py ...    # spreads the clips over 4 GPUs
"""

import argparse
import time
from datetime import timedelta
from pathlib import Path

from training.engine.output_lock import locks_output
from training.metrics.counts import COUNTS, UpTo
from training.options.clips import add_clip_options, add_loading_options, check_clip_options, parse_loading
from training.options.command import CommandParser, run_command


CALL_OPTIONS = ("num_inference_steps", "image_guidance_scale", "pose_guidance_scale", "chunk_size")


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Return the options of a command line."""
    parser = CommandParser(usage="%(prog)s --model MODEL [--OPTION VALUE ...]", description=__doc__)
    add = parser.add_argument_group("most used").add_argument
    add("--model", required=True, help="pipeline folder or Hub id")
    add("--lora", help="a subject trained on that model: file, folder or Hub id")
    add("--output", type=Path, default=Path("results"), help="folder for evaluation.json, .md, .png and .html")
    add("--resume", action="store_true", help="continue a stopped evaluation with its remaining clips")
    add("--overwrite", action="store_true", help="delete the clips of a stopped evaluation and start again")
    add_clip_options(parser, split="test", num_clips=UpTo(40), frames_per_clip=UpTo(4))
    add = parser.add_argument_group("sampling (the model's own values are the defaults)").add_argument
    add("--num_inference_steps", type=int, help="denoising steps per frame")
    add("--image_guidance_scale", type=float, help="how closely the frames follow the photo")
    add("--pose_guidance_scale", type=float, help="how closely the frames follow the poses")
    add("--chunk_size", type=int, default=8, help="frames per chunk; it affects memory, never the frames")
    add("--seed", type=int, default=0, help="seed of the choice of frames; clip i has noise of seed + i")
    add_loading_options(add)
    add = parser.add_argument_group("metrics and pictures").add_argument
    add("--num_consecutive", type=int, default=UpTo(6), help="consecutive frames per clip for temporal metrics, or 0")
    add("--identity_encoder", help="CLIP image encoder for the identity distance; by default the model's own")
    add("--inception", type=Path, help="TorchScript Inception, for FID; loading it runs its code, so trust its source")
    i3d = "TorchScript I3D, for FVD-16f: needs `--num_consecutive 16` and clips of 17 frames (`procedural` has 16)"
    add("--i3d", type=Path, help=f"{i3d}; loading it runs its code, so trust its source")
    add("--num_pictures", type=int, default=8, help="clips shown in evaluation.png and evaluation.html")
    add("--scale", type=int, default=1, help="whole factor that enlarges evaluation.png")
    return parse_loading(parser, argv)


def open_evaluation(options: argparse.Namespace, asked: dict, is_main: bool) -> tuple:
    """Load clips and model, and open the folder of measured clips; return clips, pipeline and learned metrics."""
    from training.hub.repositories import default_size, load_pipeline
    from training.media.animation import digest, model_digest, open_frames
    from training.metrics.clip_records import SUFFIX
    from training.metrics.clips import load_clips
    from training.metrics.learned import LearnedMetrics

    counts = options.num_clips, options.frames_per_clip, options.seed, options.num_consecutive
    fitted = default_size(options.model, options.revision), options.photo_split
    clips = load_clips(options.dataset, options.split, *counts, *fitted)
    asked |= {name: getattr(clips, name) for name in COUNTS}  # fewer than the defaults in a small split
    pipe = load_pipeline(options.model, options.device, options.dtype, options.lora, options.revision)
    pipe.set_progress_bar_config(disable=True)
    asked["digest"] = model_digest(pipe)
    learned = LearnedMetrics(pipe, options.identity_encoder, options.inception, options.i3d, clips.num_consecutive)
    if is_main:
        others = ("model", "lora", "revision", "output", "scale", "device")  # the digest identifies the model
        settings = {name: value for name, value in asked.items() if name not in others} | {"judges": learned.notes}
        settings["clips"] = digest([clips[0].reference, *clips[0].iuv])
        open_frames(options.output / ".clips", settings, options.resume, SUFFIX, "clips", options.overwrite)
    return clips, pipe, learned


@locks_output("output", is_folder=True)
def main(options: argparse.Namespace) -> dict:
    """Measure the clips, write the results, and return them; `{}` on all processes but the main one."""
    from accelerate import PartialState

    from training.media import animation
    from training.metrics import clip_records, evaluation_page, figures
    from training.metrics.learned import check_judges

    start = time.perf_counter()
    check_clip_options(options)
    check_judges(options.inception, options.i3d, options.num_consecutive, options.dataset)
    folder = options.output / ".clips"
    animation.check_frames(folder, options.resume, options.overwrite, clip_records.SUFFIX, "clips")
    state = PartialState(cpu=options.device == "cpu", timeout=timedelta(hours=24))  # finished processes wait
    options.device = options.device or str(state.device)
    asked = {name: str(v) if isinstance(v, Path) else v for name, v in vars(options).items()}
    del asked["resume"], asked["overwrite"]
    with state.main_process_first():  # one process draws or downloads
        clips, pipe, learned = open_evaluation(options, asked, state.is_main_process)
    call_options = {name: getattr(options, name) for name in CALL_OPTIONS}

    def record(i: int) -> clip_records.ClipRecord:
        shown = i < options.num_pictures
        return clip_records.record_clip(pipe, clips[i], options.seed + i, learned, shown, **call_options)

    num_measured = clip_records.measure_clips(len(clips), folder, record)
    if not state.is_main_process:
        return {}
    records = [clip_records.ClipRecord.load(clip_records.record_path(folder, index)) for index in range(len(clips))]
    results = figures.summarize([record.values for record in records])
    figures.add_set_distances(results["rows"], clip_records.join_features(records))
    results["share_moved"] = clip_records.share_moved(records)
    results["notes"] = figures.explain_missing(results["rows"], learned.notes)
    results |= {"settings": asked, **figures.describe_pipeline(pipe), "num_processes": state.num_processes}
    # `seconds` is the time for `num_measured` clips; a resumed evaluation measures only the remaining ones.
    results |= {"num_measured": num_measured, "seconds": round(time.perf_counter() - start, 1)}
    shown = records[: options.num_pictures]
    evaluation_page.write_results(options.output, results, [clips[i] for i in range(len(shown))], shown, options.scale)
    animation.remove_frames(folder, clip_records.SUFFIX)
    return results


if __name__ == "__main__":
    kept = "The measured clips are kept. The same command with `--resume` measures the others."
    run_command(parse_args, main, kept, extra="evaluation")
