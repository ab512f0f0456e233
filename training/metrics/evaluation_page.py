# Copyright 2026 The DreamPose for diffusers authors
# Licensed under the Apache License, Version 2.0
"""Pictures and the HTML page of an evaluation.

The page needs no script and no other file. Each panel is one picture of all its frames, and the style sheet steps
through the frames of all panels in time.
"""

import base64
import io
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from training.media.pictures import enlarge, picture_grid, to_pictures
from training.metrics.baselines import to_tensor
from training.metrics.clip_records import ClipRecord
from training.metrics.clips import Clip
from training.metrics.figures import METRICS, TABLES, Figures, markdown_tables, table_cells


ERROR_GAIN = 3
FRAMES_A_SECOND = 4
SMALL_HEIGHT, LARGE_HEIGHT = 240, 320  # pixels: small frames grow up to the first, large ones shrink to the second
STYLE = """
:root { color-scheme: light dark; }
body { font: 15px/1.45 system-ui, sans-serif; margin: 2rem auto; max-width: 90rem; padding: 0 1rem; }
table { border-collapse: collapse; margin: .5rem 0 1.5rem; }
th, td { padding: .25rem .7rem; text-align: right; border-bottom: 1px solid #8884; white-space: nowrap; }
th:first-child, td:first-child { text-align: left; }
tr.model td { font-weight: 600; }
td.better { color: light-dark(#176f2c, #6fd08c); } td.worse { color: light-dark(#b3261e, #ff9d94); }
.scroll { overflow-x: auto; }
.clip { margin: 0 0 2rem; } .panels { display: flex; flex-wrap: wrap; gap: .6rem; margin-top: .4rem; }
.panel { text-align: center; font-size: .85rem; }
.film { background-repeat: no-repeat; background-color: #fff; margin-bottom: .2rem; }
.small { image-rendering: pixelated; }
@keyframes play { from { background-position: 0 0; } to { background-position: 100% 0; } }
body:has(#pause:checked) .film { animation-play-state: paused !important; }
@media (prefers-reduced-motion: reduce) { .film { animation-play-state: paused !important; } }
dt { float: left; clear: left; min-width: 11rem; } dd { margin-left: 11.5rem; }
pre { overflow-x: auto; font-size: .8rem; }
"""


def draw_pictures(clips: Sequence[Clip], records: Sequence[ClipRecord], scale: int) -> Image.Image:
    """Draw one row per clip: photo, pose, truth and prediction of its last target, and if there is a counterpart, its
    photo and the prediction from it. `records` belong to `clips`, and each picture is enlarged by the factor `scale`.
    """
    titles = ["photo", "pose", "truth", "prediction"]
    has_other = all(clip.other_reference is not None for clip in clips)
    rows = []
    for clip, record in zip(clips, records, strict=True):
        shown = {name: to_pictures(frames[-1:])[0] for name, frames in record.pictures.items()}
        row = [clip.reference, clip.iuv[clip.frame_indices[-1]], clip.targets[-1], shown["own"]]
        row += [clip.other_reference, shown["other_photo"]] if has_other else []
        rows.append([enlarge(picture, scale) for picture in row])
    return picture_grid(rows, titles + (["another photo", "prediction"] if has_other else []))


def draw_error(predictions: torch.Tensor, targets: Sequence[Image.Image]) -> list[Image.Image]:
    """Draw `ERROR_GAIN` times the absolute error of each channel of uint8 predictions `[T, 3, H, W]`, on black."""
    error = (predictions.float() / 255 - to_tensor(targets)).abs() * ERROR_GAIN
    return to_pictures(error.clamp(max=1).mul(255).round().byte())


@dataclass(frozen=True)
class ClipView:
    """A clip on the page: its name, a line of figures, and its panels by title, each with one or all frames."""

    name: str
    line: str
    panels: dict[str, list[Image.Image]]


def view_clip(clip: Clip, record: ClipRecord) -> ClipView:
    """Prepare a clip for the page: its consecutive frames, or its targets if it has none."""
    is_run = "run own" in record.pictures
    prefix, indices = ("run ", clip.run_indices) if is_run else ("", clip.frame_indices)
    targets = list(clip.run_targets if is_run else clip.targets)
    own, warp = record.pictures[f"{prefix}own"], record.pictures[f"{prefix}warp"]
    values = record.values["model"]
    targets_line = f"frames {', '.join(map(str, clip.frame_indices))}: {_figures_line(values, 'psnr', 'ssim', 'l1')}"
    run_line = f"shown are frames {indices[0]} to {indices[-1]}: {_figures_line(values, 'temporal_error', 'flicker')}"
    return ClipView(
        name=clip.name,
        line=f"{targets_line}; {run_line}" if is_run else targets_line,
        panels={
            "reference": [clip.reference],
            "pose": [clip.iuv[i] for i in indices],
            "target": targets,
            "prediction": to_pictures(own),
            f"error ×{ERROR_GAIN}": draw_error(own, targets),
            "warped reference": to_pictures(warp),
            f"its error ×{ERROR_GAIN}": draw_error(warp, targets),
        },
    )


def _figures_line(values: Mapping[str, float], *names: str) -> str:
    return ", ".join(f"{n.replace('_', ' ')} {values[n]:.{METRICS[n].digits}f}" for n in names if n in values)


def render_page(results: Mapping[str, Any], views: Iterable[ClipView]) -> str:
    """Render the content of evaluation.json and the clips to show as one HTML page with its pictures inside."""
    settings, rows, differences = results["settings"], results["rows"], results["model_minus_row"]
    title = escape(f"{settings['model']} on {settings['dataset']}, {settings['split']}")
    clips = "\n".join(map(_clip, views))
    num_clips = settings["num_clips"]
    over = "1 clip." if num_clips == 1 else f"{num_clips} clips; mean ± standard error over clips."
    used = {name for by_metric in rows.values() for name, figure in by_metric.items() if figure["mean"] is not None}
    meanings = [(n, f"{_arrow(n)} {METRICS[n].meaning}") for n in METRICS if n in used]
    notes = list(results["notes"].items())
    facts = {name: results[name] for name in ("settings", "scheduler", "versions", "machine", "seconds")}
    return f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title><style>{STYLE}</style></head><body>
<h1>{title}</h1>
<p>{escape(over)}</p>
<h2>Clips</h2>
<p>The first clips of the split, not selected. <label><input type="checkbox" id="pause"> pause</label></p>
{clips}
<h2>Figures</h2>
{_tables(rows)}
<h2>Model minus row, clip by clip</h2>
<p>Coloured where the model is <span class="better">better</span> or <span class="worse">worse</span> by more than two
standard errors.</p>
{_tables(differences, mark=True)}
<h2>Meaning of the metrics</h2>
{_definitions(meanings)}
<h2>Learned metrics and missing figures</h2>
{_definitions(notes)}
<h2>Settings and versions</h2>
<pre>{escape("".join(f"{name}: {value}{chr(10)}" for name, value in facts.items()))}</pre>
</body></html>
"""


def _arrow(name: str) -> str:
    return "↑" if METRICS[name].is_higher_better else "↓"


def _definitions(pairs: Sequence[tuple[str, str]]) -> str:
    entries = (f"<dt>{escape(name.replace('_', ' '))}</dt><dd>{escape(text)}</dd>" for name, text in pairs)
    return f"<dl>{''.join(entries)}</dl>"


def _tables(rows: Figures, mark: bool = False) -> str:
    """Render all `TABLES` that have figures; `mark` colours differences of more than two standard errors."""
    tables = []
    for caption, names in TABLES.items():
        names, cells = table_cells(rows, names)
        if not names:
            continue
        head = "".join(f"<th>{escape(name.replace('_', ' '))} {_arrow(name)}</th>" for name in names)
        body = ""
        for row, texts in cells.items():
            kinds = [_verdict(name, rows[row].get(name)) if mark else "" for name in names]
            data = "".join(f'<td class="{kind}">{escape(text)}</td>' for kind, text in zip(kinds, texts, strict=True))
            body += f'<tr class="{"model" if row == "model" else ""}"><td>{escape(row)}</td>{data}</tr>\n'
        tables.append(f'<h3>{caption}</h3><div class="scroll"><table><tr><th></th>{head}</tr>\n{body}</table></div>')
    return "\n".join(tables)


def _verdict(name: str, difference: Mapping | None) -> str:
    if difference is None or difference["standard_error"] is None:
        return ""
    if abs(difference["mean"]) <= 2 * difference["standard_error"]:
        return ""
    return "better" if (difference["mean"] > 0) == METRICS[name].is_higher_better else "worse"


def _clip(view: ClipView) -> str:
    panels = "".join(_panel(label, frames) for label, frames in view.panels.items())
    caption = f"<strong>{escape(view.name)}</strong> {escape(view.line)}"
    return f'<div class="clip">{caption}<div class="panels">{panels}</div></div>'


def _panel(label: str, frames: Sequence[Image.Image]) -> str:
    width, height = frames[0].size
    shown = height * max(1, SMALL_HEIGHT // height) if height <= LARGE_HEIGHT else LARGE_HEIGHT
    num = len(frames)
    play = f"animation: play {num / FRAMES_A_SECOND}s steps({num}, jump-none) infinite;" if num > 1 else ""
    style = f"width: {round(width * shown / height)}px; height: {shown}px; background-size: {num}00% 100%; {play}"
    film = f'<div class="film{" small" if shown > height else ""}" role="img" aria-label="{escape(label)}"'
    film += f' style="{style} background-image: url({film_strip(frames)})"></div>'
    return f'<div class="panel">{film}{escape(label)}</div>'


def film_strip(frames: Sequence[Image.Image]) -> str:
    """Encode frames side by side as a data URL: PNG for small frames, else JPEG."""
    width, height = frames[0].size
    strip = Image.new("RGB", (width * len(frames), height))
    for index, frame in enumerate(frames):
        strip.paste(frame, (index * width, 0))
    buffer, kind = io.BytesIO(), "png" if height <= SMALL_HEIGHT else "jpeg"
    strip.save(buffer, kind, quality=90)  # PNG has no quality
    return f"data:image/{kind};base64,{base64.b64encode(buffer.getvalue()).decode()}"


def write_results(
    folder: Path, results: Mapping[str, Any], clips: Sequence[Clip], records: Sequence[ClipRecord], scale: int
) -> None:
    """Write evaluation.json, .md, .html and, if there are clips to show, .png, and print the tables.

    `results` are all figures and what they depend on, `records` belong to `clips`, and `scale` enlarges the .png.
    """
    (folder / "evaluation.json").write_text(json.dumps(results, indent=2) + "\n")
    tables = markdown_tables(results["rows"], results["notes"])
    (folder / "evaluation.md").write_text(tables)
    (folder / "evaluation.html").write_text(render_page(results, map(view_clip, clips, records)), encoding="utf-8")
    if clips:
        draw_pictures(clips, records, scale).save(folder / "evaluation.png")
    print(tables, "model minus row, clip by clip:\n", markdown_tables(results["model_minus_row"], {}), sep="\n")
    print(f"{results['seconds']} s; {folder / 'evaluation.json'}, .md, .png and .html")
