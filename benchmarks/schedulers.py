# Copyright 2026 The DreamPose for diffusers authors
# Licensed under the Apache License, Version 2.0
"""Which scheduler a saved model should store: PSNR to the true frames of validation clips by scheduler and steps.

python -m benchmarks.schedulers --model model_card/tiny
"""

import argparse
import json
from importlib.metadata import version
from pathlib import Path

import diffusers
import torch
from tqdm.auto import tqdm

from pipeline_dreampose import DreamPosePipeline
from training import metrics
from training.baselines import to_tensor
from training.clips import Clip, load_clips
from training.hub import load_pipeline


SCHEDULERS = {  # name, class, changes of the model's own settings
    "DDIM": ("DDIMScheduler", {}),
    "PNDM": ("PNDMScheduler", {"skip_prk_steps": True}),
    "Euler": ("EulerDiscreteScheduler", {}),
    "DPM-Solver++": ("DPMSolverMultistepScheduler", {}),
    "UniPC": ("UniPCMultistepScheduler", {}),
}


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--model", default="model_card/tiny", help="pipeline folder or Hub id")
    parser.add_argument("--dataset", default="procedural")
    parser.add_argument("--split", default="validation")
    parser.add_argument("--num_clips", type=int, default=15)
    parser.add_argument("--frames_per_clip", type=int, default=2)
    parser.add_argument("--schedulers", nargs="+", choices=SCHEDULERS, default=list(SCHEDULERS))
    parser.add_argument("--steps", nargs="+", type=int, default=[5, 10, 15, 20, 25])
    parser.add_argument("--reference_steps", type=int, default=100, help="of DDIM, against which all are compared")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--output", type=Path, default=Path(__file__).with_suffix(".json"))
    return parser.parse_args(argv)


def measure_clips(pipe: DreamPosePipeline, clips: list[Clip], name: str, steps: int) -> torch.Tensor:
    """PSNR of each clip, shape (num_clips,), all from the same noise."""
    class_name, changes = SCHEDULERS[name]
    pipe.scheduler = getattr(diffusers, class_name).from_config(pipe.scheduler.config, **changes)
    values = []
    for index, clip in enumerate(clips):
        width, height = clip.targets[0].size
        options = {"height": height, "width": width, "frame_indices": clip.frame_indices, "output_type": "pt"}
        generator = torch.Generator().manual_seed(index)
        frames = pipe(clip.reference, clip.iuv, num_inference_steps=steps, generator=generator, **options).frames[0]
        values.append(metrics.psnr(frames, to_tensor(clip.targets)).mean())
    return torch.stack(values)


def main(options: argparse.Namespace) -> dict:
    """Measure, print and write the report, which is returned."""
    clips = load_clips(options.dataset, options.split, options.num_clips, options.frames_per_clip)
    pipe = load_pipeline(options.model, options.device)
    pipe.set_progress_bar_config(disable=True)
    reference = measure_clips(pipe, clips, "DDIM", options.reference_steps)
    rows = {}
    for name, steps in tqdm([(name, steps) for name in options.schedulers for steps in options.steps]):
        values = measure_clips(pipe, clips, name, steps)
        rows.setdefault(name, {})[steps] = {
            "psnr": metrics.mean_and_standard_error(values),
            "minus_reference": metrics.mean_and_standard_error(values - reference),
        }
    report = {
        "settings": {name: value for name, value in vars(options).items() if name != "output"},
        "versions": {name: version(name) for name in ("torch", "diffusers")},
        "reference": metrics.mean_and_standard_error(reference),
        "rows": rows,
    }
    options.output.write_text(json.dumps(report, indent=2) + "\n")
    print(f"DDIM, {options.reference_steps} steps: {report['reference']['mean']:.2f} dB; beside it:")
    print(" " * 14, *(f"{steps:>13d}" for steps in options.steps))
    for name, by_steps in rows.items():
        cells = [by_steps[steps]["minus_reference"] for steps in options.steps]
        print(f"{name:14}", *(f"{c['mean']:+6.2f} ± {c['standard_error']:.2f}" for c in cells))
    print(f"Wrote {options.output}.")
    return report


if __name__ == "__main__":
    try:
        main(parse_args())
    except ValueError as error:
        raise SystemExit(f"schedulers.py: error: {error}") from None
