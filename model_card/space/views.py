# Copyright 2026 The DreamPose for diffusers authors
# Licensed under the Apache License, Version 2.0
"""Pictures of the page as HTML and CSS. They travel inside the page, so that no file is written for them."""

import base64
import html
import io
from collections.abc import Sequence

from PIL import Image

from model_card.space import figures


LARGEST = 320  # pixels of a side of a shown picture
# Boxes that show a frame, the figures in the choices, and nothing that is wider than a phone.
STYLE = """
.stage { display: flex; gap: 12px; justify-content: center; }
.stage figure { margin: 0; text-align: center; }
.stage img { width: min(256px, 27vw); height: auto; border-radius: 8px; }
.gradio-container { overflow: clip !important; }
@media (min-height: 640px) {
    #live { position: sticky; top: 0; z-index: 50; background: var(--body-background-fill); }
}
#live .pending { opacity: 1; }
#live [data-testid="status-tracker"] { overflow: visible; }
#own { min-height: 48px; }
.figures .wrap { display: grid; grid-template-columns: repeat(auto-fill, minmax(76px, 1fr)); }
.figures label { flex-direction: column; justify-content: space-between; gap: 4px; padding: 6px; }
.figures label span { margin: 0; text-align: center; line-height: 1.2; }
.figures label::before { content: ""; width: 51px; height: 64px; border-radius: 6px; flex: none;
    background-size: cover; }
"""


def small(picture: Image.Image) -> Image.Image:
    """Return a picture that is at most `LARGEST` pixels wide and high."""
    shown = picture.copy()
    shown.thumbnail((LARGEST, LARGEST))
    return shown


def address(pictures: Sequence[Image.Image], fps: float = figures.FPS, once: bool = False) -> str:
    """Return the data address of one picture, or of several as one that moves, for ever or once; see [`small`]."""
    file, (first, *others) = io.BytesIO(), map(small, pictures)
    moving = {"save_all": True, "append_images": others, "duration": round(1000 / fps), "loop": int(once)}
    first.save(file, "WEBP", method=0, quality=90, **(moving if others else {}))
    return f"data:image/webp;base64,{base64.b64encode(file.getvalue()).decode()}"


def there_and_back(frames: Sequence[Image.Image]) -> list[Image.Image]:
    """Return frames that go on without a jump when they are repeated."""
    return [*frames, *frames[-2:0:-1]]


def stage(
    shown: Sequence[tuple[str, Sequence[Image.Image]]], note: str = "", fps: float = figures.FPS, once: bool = False
) -> str:
    """Return figures side by side, each with its title and one picture or several that move, and a note below.

    They move `fps` pictures a second, for ever or `once`.
    """
    figures_html = "".join(
        f'<figure><img src="{address(pictures, fps, once)}" alt="{name}"><figcaption>{name}</figcaption></figure>'
        for name, pictures in ((html.escape(title), pictures) for title, pictures in shown)
    )
    return f'<div class="stage">{figures_html}</div><p role="status" style="text-align:center">{html.escape(note)}</p>'


def choice_style() -> str:
    """Return the CSS that shows each person and each moving motion in front of its name."""
    first = next(iter(figures.PERSONS))
    shown = {
        "persons": [[figures.photo(person)] for person in figures.PERSONS],
        "motions": [there_and_back(figures.poses(first, motion)) for motion in figures.MOTIONS],
    }
    return "\n".join(
        f"#{name} label:nth-of-type({index})::before {{ background-image: url({address(pictures)}); }}"
        for name, choices in shown.items()
        for index, pictures in enumerate(choices, 1)
    )
