# Copyright 2026 The DreamPose for diffusers authors
# Licensed under the Apache License, Version 2.0
"""What of an evaluation is looked at: a picture of the clips, and a self-contained page with them moving side by side.

The page needs no script and no other file: every panel is one picture of all its frames, which style sheets step
through, all in time.
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
from training.metrics.figures import METRICS, TABLES, Figures, format_figure, markdown_tables, table_cells


ERROR_GAIN = 3
FRAMES_A_SECOND = 4
SMALL_HEIGHT, LARGE_HEIGHT = 240, 320  # on the screen: enlarged as far as the first, or fitted into the second
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
    """Clips one below another: photo, pose, truth and prediction of the last target of each, and what another
    subject's photo gives.

    Args:
        clips (`Sequence[Clip]`): As many as are shown.
        records (`Sequence[ClipRecord]`): Theirs, with `pictures`.
        scale (`int`): Enlarges each picture by a whole factor.
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
    """Where predictions are wrong: `ERROR_GAIN` times the absolute error of each channel, on black.

    Args:
        predictions (`torch.Tensor`): Levels, shape `[T, 3, H, W]`, uint8.
        targets (`Sequence[PIL.Image.Image]`): The `T` true frames.
    """
    error = (predictions.float() / 255 - to_tensor(targets)).abs() * ERROR_GAIN
    return to_pictures(error.clamp(max=1).mul(255).round().byte())


@dataclass(frozen=True)
class ClipView:
    """A clip as the page shows it: its name, a line about it, and its panels, one frame or all frames of each."""

    name: str
    line: str
    panels: dict[str, list[Image.Image]]


def view_clip(clip: Clip, record: ClipRecord) -> ClipView:
    """Lay a clip's frames beside one another: those that follow one another, or without such the targets.

    Args:
        clip (`Clip`): The clip.
        record (`ClipRecord`): Its, with `pictures`.
    """
    is_run = "run own" in record.pictures
    prefix, indices = ("run ", clip.run_indices) if is_run else ("", clip.frame_indices)
    targets = list(clip.run_targets if is_run else clip.targets)
    own, warp = record.pictures[f"{prefix}own"], record.pictures[f"{prefix}warp"]
    figures = {name: {"mean": value, "standard_error": None} for name, value in record.values["model"].items()}
    targets_line = f"frames {', '.join(map(str, clip.frame_indices))}: {_figures_line(figures, 'psnr', 'ssim', 'l1')}"
    run_line = f"shown are frames {indices[0]} to {indices[-1]}: {_figures_line(figures, 'temporal_error', 'flicker')}"
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


def _figures_line(figures: Mapping[str, Mapping], *names: str) -> str:
    return ", ".join(f"{n.replace('_', ' ')} {format_figure(n, figures[n])}" for n in names if n in figures)


def render_page(results: Mapping[str, Any], views: Iterable[ClipView]) -> str:
    """Write an evaluation as one HTML page.

    Args:
        results (`Mapping[str, Any]`): What evaluation.json holds.
        views (`Iterable[ClipView]`): The clips to show.
    Returns:
        `str`: The page; pictures are inside.
    """
    settings, rows, differences = results["settings"], results["rows"], results["model_minus_row"]
    title = escape(f"{settings['model']} on {settings['dataset']}, {settings['split']}")
    clips = "\n".join(map(_clip, views))
    used = {name for by_metric in rows.values() for name, figure in by_metric.items() if figure["mean"] is not None}
    meanings = [(n, f"{_arrow(n)} {METRICS[n].meaning}") for n in METRICS if n in used]
    notes = list(results["notes"].items())
    facts = {name: results[name] for name in ("settings", "scheduler", "versions", "machine", "seconds")}
    return f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title><style>{STYLE}</style></head><body>
<h1>{title}</h1>
<p>{settings["num_clips"]} clips; mean ± standard error over clips.</p>
<h2>Clips</h2>
<p>The first of the split, not chosen. <label><input type="checkbox" id="pause"> hold still</label></p>
{clips}
<h2>Figures</h2>
{_tables(rows)}
<h2>Model minus row, clip by clip</h2>
<p>Coloured where the model is <span class="better">better</span> or <span class="worse">worse</span> by more than two
standard errors.</p>
{_tables(differences, mark=True)}
<h2>What they mean</h2>
{_definitions(meanings)}
<h2>Judges</h2>
{_definitions(notes)}
<h2>How it was made</h2>
<pre>{escape("".join(f"{name}: {value}{chr(10)}" for name, value in facts.items()))}</pre>
</body></html>
"""


def _arrow(name: str) -> str:
    return "↑" if METRICS[name].is_higher_better else "↓"


def _definitions(pairs: Sequence[tuple[str, str]]) -> str:
    entries = (f"<dt>{escape(name.replace('_', ' '))}</dt><dd>{escape(text)}</dd>" for name, text in pairs)
    return f"<dl>{''.join(entries)}</dl>"


def _tables(rows: Figures, mark: bool = False) -> str:
    """All of `TABLES` that have figures; `mark` colours differences that are more than two standard errors."""
    tables = []
    for caption, names in TABLES.items():
        names, cells = table_cells(rows, names)
        if not names:
            continue
        head = "".join(f"<th>{escape(name.replace('_', ' '))} {_arrow(name)}</th>" for name in names)
        body = ""
        for row, texts in cells.items():
            kinds = [_verdict(name, rows[row].get(name)) if mark else "" for name in names]
            data = "".join(f'<td class="{kind}">{text}</td>' for kind, text in zip(kinds, texts, strict=True))
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
    """Frames side by side as a data URL: a PNG where they are small, else a JPEG."""
    width, height = frames[0].size
    strip = Image.new("RGB", (width * len(frames), height))
    for index, frame in enumerate(frames):
        strip.paste(frame, (index * width, 0))
    buffer, kind = io.BytesIO(), "png" if height <= SMALL_HEIGHT else "jpeg"
    strip.save(buffer, kind, **({} if kind == "png" else {"quality": 90}))
    return f"data:image/{kind};base64,{base64.b64encode(buffer.getvalue()).decode()}"


def write_results(
    folder: Path, results: Mapping[str, Any], clips: Sequence[Clip], records: Sequence[ClipRecord], scale: int
) -> None:
    """Write evaluation.json, evaluation.md, evaluation.html and, if there are clips to show, evaluation.png; print
    the tables.

    Args:
        folder (`Path`): Where they go.
        results (`Mapping[str, Any]`): All figures and what they depend on.
        clips (`Sequence[Clip]`): The clips that are shown.
        records (`Sequence[ClipRecord]`): Theirs.
        scale (`int`): Enlarges evaluation.png.
    """
    (folder / "evaluation.json").write_text(json.dumps(results, indent=2) + "\n")
    tables = markdown_tables(results["rows"], results["notes"])
    (folder / "evaluation.md").write_text(tables)
    (folder / "evaluation.html").write_text(render_page(results, map(view_clip, clips, records)), encoding="utf-8")
    if clips:
        draw_pictures(clips, records, scale).save(folder / "evaluation.png")
    print(tables, "model minus row, clip by clip:\n", markdown_tables(results["model_minus_row"], {}), sep="\n")
    print(f"{results['seconds']} s; {folder / 'evaluation.json'}, .md, .png and .html")
