# Copyright 2026 The DreamPose for diffusers authors
# Licensed under the Apache License, Version 2.0
"""Which scheduler a saved model should store: PSNR to the true frames of validation clips by scheduler and steps, as a
table and a heat map. Stopped, it goes on with --resume.

python -m benchmarks.claims.schedulers --model model_card/tiny
"""

import argparse
import json
import shutil
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path

import diffusers
import torch
from tqdm.auto import tqdm

from pipeline_dreampose import DreamPosePipeline
from training.hub.repositories import default_size, load_pipeline
from training.media.animation import model_digest, open_frames
from training.media.charts import heat_map
from training.media.settings_file import write_json
from training.metrics import frames as metrics
from training.metrics.baselines import sample_frames, to_tensor
from training.metrics.clips import Clip, load_clips
from training.options.clips import add_clip_options, check_clip_options


SCHEDULERS = {  # name, class, changes of the model's own settings
    "DDIM": ("DDIMScheduler", {}),
    "PNDM": ("PNDMScheduler", {"skip_prk_steps": True}),
    "Euler": ("EulerDiscreteScheduler", {}),
    "DPM-Solver++": ("DPMSolverMultistepScheduler", {}),
    "UniPC": ("UniPCMultistepScheduler", {}),
}
DEFAULT = ["DDIM", "PNDM", "DPM-Solver++", "UniPC"]
SUFFIX = ".values.json"


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--model", default="model_card/tiny", help="pipeline folder or Hub id")
    add_clip_options(parser, split="validation", num_clips=8, frames_per_clip=2)
    parser.add_argument("--schedulers", nargs="+", choices=SCHEDULERS, default=DEFAULT)
    parser.add_argument("--steps", nargs="+", type=int, default=[4, 6, 10, 15, 25, 50, 100])
    parser.add_argument("--reference_steps", type=int, default=100, help="of DDIM, against which all are compared")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--resume", action="store_true", help="go on with a run that was stopped")
    output = "the heat map lies beside it, as .png"
    parser.add_argument("--output", type=Path, default=Path(__file__).with_suffix(".json"), help=output)
    return parser.parse_args(argv)


def measure_clips(pipe: DreamPosePipeline, clips: Sequence[Clip], name: str, steps: int) -> torch.Tensor:
    """PSNR of each clip, shape (num_clips,), all from the same noise."""
    class_name, changes = SCHEDULERS[name]
    pipe.scheduler = getattr(diffusers, class_name).from_config(pipe.scheduler.config, **changes)
    values = []
    for index, clip in enumerate(clips):
        where = clip.reference, clip.iuv, clip.frame_indices, clip.targets[0].size
        frames = sample_frames(pipe, *where, index, num_inference_steps=steps)
        values.append(metrics.psnr(frames, to_tensor(clip.targets)).mean())
    return torch.stack(values)


def print_report(report: dict, names: list[str], steps: list[int]) -> None:
    print(f"DDIM, {report['settings']['reference_steps']} steps: {report['reference']['mean']:.2f} dB; beside it:")
    print(" " * 14, *(f"{number:>13d}" for number in steps))
    for name in names:
        cells = [report["rows"][name][number]["minus_reference"] for number in steps]
        print(f"{name:14}", *(f"{c['mean']:+6.2f} ± {c['standard_error']:.2f}" for c in cells))


def main(options: argparse.Namespace) -> dict:
    """Measure what is missing, print and write the report, which is returned."""
    check_clip_options(options)
    chosen, size = (options.num_clips, options.frames_per_clip), default_size(options.model)
    clips = load_clips(options.dataset, options.split, *chosen, size=size)  # each is read when it is measured
    pipe = load_pipeline(options.model, options.device)
    pipe.set_progress_bar_config(disable=True)
    folder = options.output.with_name(f".{options.output.stem}.parts")
    names = ("model", "dataset", "split", "num_clips", "frames_per_clip", "device")
    begun = {name: getattr(options, name) for name in names} | {"model": model_digest(pipe)}
    open_frames(folder, begun, options.resume, SUFFIX, "schedulers and steps")
    cells = [(name, steps) for name in options.schedulers for steps in options.steps]
    values = {}
    for name, steps in tqdm(dict.fromkeys([("DDIM", options.reference_steps), *cells])):
        path = folder / f"{name}_{steps}{SUFFIX}"
        if not path.exists():
            write_json(path, measure_clips(pipe, clips, name, steps).tolist())
        values[name, steps] = torch.tensor(json.loads(path.read_text()))
    reference, rows = values["DDIM", options.reference_steps], {}
    for name, steps in cells:
        rows.setdefault(name, {})[steps] = {
            "psnr": metrics.mean_and_standard_error(values[name, steps]),
            "minus_reference": metrics.mean_and_standard_error(values[name, steps] - reference),
        }
    report = {
        "settings": {name: value for name, value in vars(options).items() if name not in ("output", "resume")},
        "versions": {name: version(name) for name in ("torch", "diffusers")},
        "reference": metrics.mean_and_standard_error(reference),
        "rows": rows,
    }
    write_json(options.output, report)
    means = [[rows[name][steps]["psnr"]["mean"] for steps in options.steps] for name in rows]
    heat_map(means, [f"{steps} steps" for steps in options.steps], list(rows)).save(options.output.with_suffix(".png"))
    shutil.rmtree(folder)
    print_report(report, list(rows), options.steps)
    print(f"Wrote {options.output} and .png.")
    return report


if __name__ == "__main__":
    try:
        main(parse_args())
    except ValueError as error:
        raise SystemExit(f"schedulers.py: error: {error}") from None
