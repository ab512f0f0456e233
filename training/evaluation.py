# Copyright 2026 The DreamPose for diffusers authors
# Licensed under the Apache License, Version 2.0
"""Measure a saved pipeline on held-out clips, beside the baselines that its figures must be read against.

python training/evaluation.py --model model_card/tiny --dataset procedural --split test --output results
accelerate launch --multi_gpu --num_processes 4 training/evaluation.py ...    # the clips are shared out
"""

import argparse
import shutil
import time
from datetime import timedelta
from itertools import chain
from pathlib import Path

from accelerate import PartialState

from training.hub.repositories import default_size, load_pipeline
from training.media.animation import digest, model_digest, open_frames
from training.metrics.clip_records import SUFFIX, ClipRecord, join_features, measure_clips, record_clip, record_path
from training.metrics.clips import load_clips
from training.metrics.evaluation_page import write_results
from training.metrics.figures import add_set_distances, describe_run, summarize
from training.metrics.learned import LearnedMetrics, check_judges
from training.options.clips import add_clip_options, check_clip_options


CALL_OPTIONS = ("num_inference_steps", "image_guidance_scale", "pose_guidance_scale", "chunk_size")


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Measure a saved pipeline on held-out clips.")
    add = parser.add_argument
    add("--model", required=True, help="pipeline folder or Hub id")
    add("--revision", help="branch, tag or commit of the model on the Hub")
    add("--lora", help="a subject trained on that model: file, folder or Hub id")
    add_clip_options(parser, split="test", num_clips=40, frames_per_clip=4)
    add("--output", type=Path, default=Path("results"), help="folder of evaluation.json, .md, .png and .html")
    add("--resume", action="store_true", help="go on with the clips of an evaluation that was stopped")
    run = "frames a clip that follow one another, for temporal error and flicker; 0 for none (default: 6)"
    add("--num_consecutive", type=int, default=6, help=run)
    add("--num_inference_steps", type=int, help="default: the model's own, as for the scales")
    add("--image_guidance_scale", type=float)
    add("--pose_guidance_scale", type=float)
    add("--chunk_size", type=int, default=8, help="frames denoised at a time")
    add("--seed", type=int, default=0, help="of the noise (clip i: seed + i) and the choice of frames")
    add("--device", help="cpu, cuda, mps, ... (default: the best there is)")
    add("--dtype", choices=["float32", "float16", "bfloat16"], help="default: float16 on CUDA")
    add("--identity_encoder", help="CLIP image encoder for the identity distance (default: the model's own)")
    add("--inception", type=Path, help="TorchScript Inception, for FID; it is code, so trust its source")
    add("--i3d", type=Path, help="TorchScript I3D, for FVD-16f, with `--num_consecutive 16`; it is code likewise")
    add("--num_pictures", type=int, default=8, help="clips shown in evaluation.png and evaluation.html")
    add("--scale", type=int, default=3, help="enlarges evaluation.png")
    return parser.parse_args(argv)


def main(options: argparse.Namespace) -> dict:
    start = time.perf_counter()
    check_clip_options(options)
    check_judges(options.inception, options.i3d, options.num_consecutive)
    if options.output.exists() and not options.output.is_dir():
        raise ValueError(f"`output` must be a folder, got {str(options.output)!r}, which is a file.")
    # A process that is through waits for the others.
    state = PartialState(cpu=options.device == "cpu", timeout=timedelta(hours=24))
    options.device = options.device or str(state.device)
    asked = {name: str(v) if isinstance(v, Path) else v for name, v in vars(options).items() if name != "resume"}
    chosen = options.num_clips, options.frames_per_clip, options.seed, options.num_consecutive
    with state.main_process_first():  # one draws or downloads
        clips = load_clips(options.dataset, options.split, *chosen, default_size(options.model, options.revision))
        pipe = load_pipeline(options.model, options.device, options.dtype, options.lora, options.revision)
        judges = options.identity_encoder, options.inception, options.i3d, options.num_consecutive
        learned = LearnedMetrics(pipe, *judges)
        folder = options.output / ".clips"
        if state.is_main_process:
            first = clips[0]
            begun = asked | {"model": model_digest(pipe), "clips": digest(chain([first.reference], first.iuv))}
            begun |= {"judges": learned.notes}
            for name in ("lora", "revision", "output", "scale", "device"):  # the model is its weights
                begun.pop(name)
            open_frames(folder, begun, options.resume, SUFFIX, "clips")
    pipe.set_progress_bar_config(disable=True)
    call_options = {name: getattr(options, name) for name in CALL_OPTIONS}

    def record(i: int) -> ClipRecord:
        return record_clip(pipe, clips[i], options.seed + i, learned, i < options.num_pictures, **call_options)

    num_measured = measure_clips(len(clips), folder, record)
    if not state.is_main_process:
        return {}
    records = [ClipRecord.load(record_path(folder, index)) for index in range(len(clips))]
    figures = summarize([record.values for record in records])
    add_set_distances(figures["rows"], join_features(records))
    moved = [moved for record in records for moved in record.moved]
    results = {
        **figures,
        "share_moved": sum(moved) / len(moved) if moved else None,
        "notes": learned.notes,
        "settings": asked,
        **describe_run(pipe),
        "num_processes": state.num_processes,
        "num_measured": num_measured,  # in these seconds: fewer than all, if the evaluation went on
        "seconds": round(time.perf_counter() - start, 1),
    }
    shown = range(min(options.num_pictures, len(clips)))
    write_results(options.output, results, [clips[i] for i in shown], [records[i] for i in shown], options.scale)
    shutil.rmtree(folder)
    return results


if __name__ == "__main__":
    try:
        main(parse_args())
    except ValueError as error:
        raise SystemExit(f"evaluation.py: error: {error}") from None
