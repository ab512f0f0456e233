# Copyright 2026 The DreamPose for diffusers authors
# Licensed under the Apache License, Version 2.0
"""Draw the pictures of README.md and docs/: DensePose IUV, good and bad inputs, a driving video, a guidance grid.

python docs/pictures/draw.py

All people are drawn figures. The guidance grid and the frames after a driving video are sampled with the small model.
The other pictures need no model. The script needs the extra `training`.
"""

import colorsys
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont, ImageOps

from training.data.procedural_fashion import ProceduralFashionConfig
from training.data.procedural_scene import Frame, render_clip
from training.hub.repositories import load_pipeline
from training.media.animation import render_grid
from training.media.pictures import enlarge, picture_grid, read_photo
from training.options.command import CommandParser
from training.poses.alignment import align_poses
from training.poses.pose_files import read_poses


FOLDER = Path(__file__).parent
MODEL_CARD = FOLDER.parent.parent / "model_card"
SAMPLE = MODEL_CARD / "sample"
GOOD, BAD = "#157a2c", "#c02020"
CELL = 400, 320  # width and height of a frame of the driving video, and of its pictures
# Nine evenly spaced colours of matplotlib's viridis, in which some DensePose tools paint the parts 0 to 24.
VIRIDIS = np.array(
    [(68, 1, 84), (71, 44, 122), (59, 81, 139), (44, 113, 142), (33, 144, 141), (39, 173, 129), (92, 200, 99)]
    + [(170, 220, 50), (253, 231, 37)]
)
# One colour for each part, neighbouring codes far apart in hue; black where nobody is.
PART_COLORS = np.array([(0, 0, 0)] + [colorsys.hsv_to_rgb(part * 0.381966 % 1, 0.6, 0.95) for part in range(1, 25)])


def label(picture: Image.Image, title: str, note: str, color: str = "black") -> Image.Image:
    """Write a title and a note below a picture."""
    labelled = Image.new("RGB", (picture.width, picture.height + 48), "white")
    labelled.paste(picture)
    draw = ImageDraw.Draw(labelled)
    middle = picture.width / 2
    draw.text((middle, picture.height + 15), title, color, ImageFont.load_default(19), anchor="mm")
    draw.text((middle, picture.height + 36), note, "#444444", ImageFont.load_default(15), anchor="mm")
    return labelled


def viridis_parts(iuv: np.ndarray) -> Image.Image:
    """Paint the parts of an IUV array `[H, W, 3]` in viridis, as a picture that has lost U and V."""
    position = iuv[..., 2] / 24
    channels = [np.interp(position, np.linspace(0, 1, len(VIRIDIS)), VIRIDIS[:, c]) for c in range(3)]
    return Image.fromarray(np.stack(channels, axis=-1).round().astype(np.uint8))


def draw_densepose_iuv() -> Image.Image:
    """The sample's photo, its IUV picture, and the three channels of that picture."""
    columns = slice(16, 104)  # without the empty sides
    photo = np.asarray(read_photo(SAMPLE / "photo.png"))[:, columns]
    iuv = np.asarray(Image.open(SAMPLE / "photo_iuv.png"))[:, columns]
    v, u, parts = np.moveaxis(iuv, -1, 0)
    panels = [
        (photo, "photo", "one person, whole"),
        (iuv, "its IUV picture", "R = V, G = U, B = I"),
        (u, "U, in green", "position in the part"),
        (v, "V, in red", "position in the part"),
        ((PART_COLORS[parts] * 255).round().astype(np.uint8), "I, in blue", "part 1-24 (as colours)"),
    ]
    cells = []
    for pixels, title, note in panels:
        picture = Image.fromarray(pixels).convert("RGB")
        picture = picture.resize((picture.width * 2, picture.height * 2), Image.Resampling.NEAREST)
        cells.append(label(picture, title, note))
    return picture_grid([cells], gap=8)


def draw_figure(index: int, turn: float = 0.0, frame_index: int = 0, height: int = 270) -> Frame:
    """Draw a held-out subject in its own motion, turned by `turn` radians."""
    config = ProceduralFashionConfig(name="pictures")
    motion = config.motion("test", index)
    motion = replace(motion, yaw=motion.yaw + turn)
    subject = replace(config.subject("test", index), background=np.full(3, 0.93))
    return render_clip(subject, motion, height, height * 4 // 5, [frame_index])[0]


def draw_photos() -> Image.Image:
    """A photo that suits the pipeline, and three that do not."""
    good, other = (Image.fromarray(draw_figure(index).image) for index in (39, 24))
    both = Image.new("RGB", good.size, good.getpixel((0, 0)))
    for left, person in ((0, good), (108, other)):
        both.paste(person.resize((108, 202), box=(36, 0, 180, 270)), (left, 34))
    cells = [
        label(good, "good", "whole, facing the camera", GOOD),
        label(good.resize(good.size, box=(30, 0, 186, 194)), "bad", "cut off at the knees", BAD),
        label(Image.fromarray(draw_figure(39, turn=np.pi).image), "bad", "turned away", BAD),
        label(both, "bad", "two people", BAD),
    ]
    return picture_grid([cells], gap=8)


def draw_pose_frames() -> Image.Image:
    """A pose frame that the pipeline takes, and one that it refuses."""
    iuv = draw_figure(39, frame_index=12).iuv
    cells = [
        label(Image.fromarray(iuv), "good", "IUV: R = V, G = U, B = I", GOOD),
        label(viridis_parts(iuv), "refused", "part colours: U and V are lost", BAD),
    ]
    return picture_grid([cells], gap=8)


def draw_dance() -> list[tuple[Image.Image, Image.Image]]:
    """Draw four frames of a driving video, in which another subject stands aside and farther away, and their IUV."""
    frames = []
    for index in (0, 4, 8, 12):
        figure = draw_figure(26, frame_index=index, height=210)
        image, iuv = Image.new("RGB", CELL, tuple(figure.image[0, 0])), Image.new("RGB", CELL)
        for room, pixels in ((image, figure.image), (iuv, figure.iuv)):
            room.paste(Image.fromarray(pixels), (218, 74))
        frames.append((image, iuv))
    return frames


def align_dance() -> list[Image.Image]:
    """The poses of `draw_dance`, aligned with the sample's photo as `animate.py --align place` does."""
    with Image.open(SAMPLE / "photo_iuv.png") as photo_iuv:
        return align_poses([iuv for _, iuv in draw_dance()], photo_iuv, "place")


def draw_driving_poses() -> Image.Image:
    """The sample's photo and its IUV picture, and frames, poses and aligned poses of a driving video."""
    dance, photo = draw_dance(), [read_photo(SAMPLE / name) for name in ("photo.png", "photo_iuv.png")]
    enlarged = [picture.resize((picture.width * 2, picture.height * 2), Image.Resampling.NEAREST)
                for picture in (*photo, *align_dance())]  # fmt: skip
    photo, aligned = enlarged[:2], enlarged[2:]
    rows = [[photo[0], *(image for image, _ in dance)], [photo[1], *(iuv for _, iuv in dance)], [None, *aligned]]
    cells = [[picture and ImageOps.pad(picture, CELL, color="#888888") for picture in row] for row in rows]
    return picture_grid(cells, ["photo", *["video"] * 4], row_titles=["picture", "pose", "aligned"])


def draw_driving_frames() -> Image.Image:
    """The sample's photo, and what the small model draws after the aligned poses of `draw_dance`."""
    pipe = load_pipeline(str(MODEL_CARD / "tiny"), "cpu")
    photo = read_photo(SAMPLE / "photo.png")
    frames = pipe(photo, align_dance(), generator=torch.Generator().manual_seed(0)).frames[0]
    return picture_grid([[enlarge(picture, 2) for picture in (photo, *frames)]], ["photo", *["frame"] * 4]).quantize(
        256
    )


def draw_guidance_grid() -> Image.Image:
    """The picture that `animate.py --grid 0,2,6 0,2,6 --num_inference_steps 15 --scale 1` writes, in 256 colours."""
    pipe = load_pipeline(str(MODEL_CARD / "tiny"), "cpu")
    photo, poses, scales = read_photo(SAMPLE / "photo.png"), read_poses(SAMPLE / "poses"), [0.0, 2.0, 6.0]
    return render_grid(pipe, photo, poses, scales, scales, scale=1, num_inference_steps=15).quantize(256)


DRAWN = {"densepose_iuv.png": draw_densepose_iuv, "photos.png": draw_photos, "pose_frames.png": draw_pose_frames}
DRAWN |= {"driving_poses.png": draw_driving_poses}
SAMPLED = {"guidance_grid.png": draw_guidance_grid, "driving_frames.png": draw_driving_frames}


def main() -> None:
    CommandParser(description=__doc__).parse_args()  # `--help` draws nothing
    for name, draw in (DRAWN | SAMPLED).items():
        draw().save(FOLDER / name, optimize=True)
        print(FOLDER / name)


if __name__ == "__main__":
    main()
