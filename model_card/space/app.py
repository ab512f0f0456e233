# Copyright 2026 The DreamPose for diffusers authors
# Licensed under the Apache License, Version 2.0
"""A page that moves a person live in a browser.

make page                                                    # the embedded small model, at http://127.0.0.1:7860
python model_card/space/app.py --model you/dreampose --device cuda
"""

import argparse
import html
import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory


ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))  # a Space has the project's files in the same places

import gradio as gr  # noqa: E402

from model_card.space import figures, uploads, views  # noqa: E402
from model_card.space.studio import MAX_STEPS, Settings, Studio, python_lines, shell_command, write_result  # noqa: E402
from training.media import animation  # noqa: E402
from training.media.outputs import write_frame  # noqa: E402
from training.media.pictures import poses_as_pictures  # noqa: E402


SAMPLE = ROOT / "model_card" / "sample"
MAX_QUEUE = 32
KEPT = 1800  # seconds that the files of a visitor are kept
DEVICE = {"concurrency_id": "device", "concurrency_limit": 1}  # one video at a time
QUIET = {"trigger_mode": "always_last", "show_progress": "hidden", "api_visibility": "private"}
LIVE_CHUNK = 2  # frames that are made, and so shown, together
FEW, FULL = "Few steps", "Full"


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Return the options of a command line. A Space sets the model by its variable `DREAMPOSE_MODEL`."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    model = os.environ.get("DREAMPOSE_MODEL", "model_card/tiny")
    parser.add_argument("--model", default=model, help="pipeline folder or Hub id (default: the small model)")
    parser.add_argument("--device", help="cpu, cuda, mps, ... (default: a GPU if there is one)")
    parser.add_argument("--port", type=int, help="port of the page (default: the first free one from 7860)")
    parser.add_argument("--mcp", action="store_true", help="offer the animation to language models, as a tool by MCP")
    return parser.parse_args(argv)


class Page:
    """What the page's controls do. Each method turns a bad input into a message of the page."""

    def __init__(self, studio: Studio):
        self.studio = studio
        self.model = FEW if studio.has_few else FULL

    def defaults(self, model: str) -> tuple[int, float, float]:
        """Return the model's number of steps and scales for `"Few steps"` or `"Full"`."""
        with saying_errors():
            settings = self.studio.defaults(model == FEW)
            return tuple(settings.call_options.values())

    def settings(self, model, steps, photo_scale, pose_scale, seed) -> Settings:
        """Return what the controls say. A browser sends whole numbers with or without a point."""
        whole = [int(value) if isinstance(value, float) and value.is_integer() else value for value in (steps, seed)]
        return Settings(model == FEW, whole[0], photo_scale, pose_scale, whole[1])

    def live(self, person, motion, *sampling) -> Iterator[str]:
        """Yield the stage with each frame of a drawn person in a drawn motion, and at last the moving whole."""
        with saying_errors():
            poses, done = figures.poses(person, motion), []
            for frame in self.studio.frames(figures.photo(person), poses, self.settings(*sampling), LIVE_CHUNK):
                done.append(frame)
                shown = [("Pose", poses[len(done) - 1 : len(done)]), (f"{person}, made now", [frame])]
                yield views.stage(shown, f"Frame {len(done)} of {len(poses)}")
            if len(done) == len(poses):
                yield self.loop(person, poses, done)

    def loop(self, person, poses, frames) -> str:
        """Return the stage with a finished motion, which the browser repeats without asking the model again."""
        photo = ("Photo", [figures.photo(person)])
        shown = [photo, ("Poses", views.there_and_back(poses)), (person, views.there_and_back(frames))]
        return views.stage(shown, f"{len(frames)} frames, each made from the photo and the poses alone")

    def pose(self, person, turn, left, right, elbows, *sampling) -> str:
        """Return the stage with a person in the pose of the sliders."""
        with saying_errors():
            iuv = figures.still_pose(person, turn, left, right, elbows)
            frames = list(self.studio.frames(figures.photo(person), [iuv], self.settings(*sampling)))
            return views.stage([("Pose", [iuv]), (person, frames)])

    def preview(self, photo, poses, photo_iuv) -> str:
        """Return the stage with an own photo and its poses, moved onto its body, before anything is sampled."""
        if not photo or not poses:
            return ""
        with saying_errors():
            image, maps = uploads.read_upload(photo, poses, photo_iuv)
            poses = "Poses on the photo's body" if photo_iuv else "Poses as they are"
            return views.stage([("Photo", [image]), (poses, poses_as_pictures(maps))], f"{len(maps)} poses")

    def animate(self, photo, poses, photo_iuv, model, steps, photo_scale, pose_scale, seed) -> Iterator[tuple]:
        """Animate a person: make a video from one photo and a sequence of DensePose poses.

        Args:
            photo: Picture of the person.
            poses: IUV pictures (R = V, G = U, B = I), one lossless video of them, or one .npy file.
            photo_iuv: IUV picture of the photo, to move the poses onto its body. It may be left out.
            model: "Few steps" is fast, "Full" samples with the model's own number of steps.
            steps: Number of denoising steps.
            photo_scale: How closely the frames follow the photo; 1 is no guidance.
            pose_scale: How closely the frames follow the poses; 1 is no guidance.
            seed: Chooses the noise that all frames share.
        Returns:
            The newest frame as HTML, and at last the video, a strip of its frames, an archive, and how to repeat it.
        """
        with saying_errors(), TemporaryDirectory(prefix="dreampose-") as folder:
            began, folder, frames = time.monotonic(), Path(folder), []
            image, maps = uploads.read_upload(photo, poses, photo_iuv)
            shown = ("Photo", [views.small(image)])
            settings = self.settings(model, steps, photo_scale, pose_scale, seed)
            (folder / "frames").mkdir()
            for index, frame in enumerate(self.studio.frames(image, maps, settings)):
                write_frame(frame, animation.frame_path(folder / "frames", index))
                frames.append(frame)
                note = f"Frame {index + 1} of {len(maps)}"
                yield views.stage([shown, ("Newest frame", [frame])], note), *[gr.skip()] * 4
            if len(frames) < len(maps):
                raise ValueError("The video was stopped. Press Animate to start it again.")
            archive = write_result(folder, self.studio.model, image, maps, frames, settings)
            note = f"{len(frames)} frames in {time.monotonic() - began:.1f} seconds"
            video, strip = (str(archive.with_suffix("") / name) for name in ("video.mp4", "video.png"))
            final = views.stage([shown, ("Poses", poses_as_pictures(maps)), ("Video", frames)], note)
            yield final, video, strip, str(archive), code(self.studio.model, settings, maps)


@contextmanager
def saying_errors() -> Iterator[None]:
    """Show the sentence of a `ValueError` on the page. Other errors are bugs, and the page hides their text."""
    try:
        yield
    except ValueError as error:
        # The sentence may hold a file's name, and the page shows HTML.
        raise gr.Error(html.escape(str(error), quote=False), duration=None) from error


def code(model: str, settings: Settings, poses) -> str:
    """Return how to make a video again, as Markdown."""
    python, shell = python_lines(model, settings, poses), shell_command(model, settings, poses)
    where = "Unpack the download in a clone of the project. Each of these makes exactly this video again:"
    return f"{where}\n\n```python\n{python}```\n\n```bash\n{shell}\n```"


def sampling_controls(page: Page) -> list[gr.components.Component]:
    """Draw the controls of sampling, and return them in the order of `Page.settings`."""
    steps, photo_scale, pose_scale = page.defaults(page.model)
    choices, one = [FEW, FULL] if page.studio.has_few else [FULL], "1 is no guidance."
    with gr.Accordion("How it is sampled", open=False):
        info = "Few steps is live. Full takes longer and follows the scales below."
        model = gr.Radio(choices, value=page.model, label="Model", info=info)
        steps = gr.Slider(1, MAX_STEPS, steps, step=1, label="Steps", info="More steps take longer.")
        info = "How closely the frames follow the photo; " + one
        photo_scale = gr.Slider(0, 10, photo_scale, label="Photo", info=info)
        info = "How closely the frames follow the poses; " + one
        pose_scale = gr.Slider(0, 10, pose_scale, label="Poses", info=info)
        info = "The noise that all frames share; another number is another try."
        seed = gr.Number(0, precision=0, minimum=0, label="Seed", info=info)
    model.input(page.defaults, model, [steps, photo_scale, pose_scale], api_visibility="private")
    return [model, steps, photo_scale, pose_scale, seed]


def live_tab(page: Page, opening: str) -> None:
    """Draw the drawn persons, their motions and the sliders of their joints."""
    shown = gr.HTML(opening, elem_id="live")
    person = gr.Radio(
        list(figures.PERSONS),
        value=next(iter(figures.PERSONS)),
        label="Person",
        elem_id="persons",
        elem_classes="figures",
    )
    motion = gr.Radio(
        list(figures.MOTIONS),
        value=next(iter(figures.MOTIONS)),
        label="Motion",
        elem_id="motions",
        elem_classes="figures",
    )
    with gr.Accordion("Or pose the body yourself"):
        turn = gr.Slider(-180, 180, 0, step=5, label="Turn", info="Degrees; 0 faces you.")
        arms = [
            gr.Slider(0, 150, 15, step=5, label=f"{side} arm", info="Degrees from hanging.")
            for side in ("Left", "Right")
        ]
        elbows = gr.Slider(0, 120, 15, step=5, label="Elbows", info="Degrees from straight.")
    sampling = sampling_controls(page)
    moving = [person, motion, *sampling]
    # The switch of few and full steps changes the others, each of which starts a video; only the last one runs.
    changed = [person.input, motion.input, *(control.change for control in sampling[1:])]
    gr.on(changed, page.live, moving, shown, **DEVICE, **QUIET)
    joints = [turn, *arms, elbows]
    gr.on([joint.input for joint in joints], page.pose, [person, *joints, *sampling], shown, **DEVICE, **QUIET)


def own_tab(page: Page) -> None:
    """Draw the fields of a visitor's own photo and poses, and what is made of them."""
    gr.Markdown(
        f"A photo ({uploads.PICTURE_LIMIT}), and IUV pictures, a lossless IUV video or a `.npy` file"
        f" ({uploads.POSE_LIMIT})."
    )
    with gr.Row():
        photo = gr.File(label="Photo of the person", file_types=["image"], elem_id="photo", min_width=240, height=180)
        poses = gr.File(
            label="Poses: IUV pictures or one video", file_count="multiple", elem_id="poses", height=180, min_width=240
        )
        label = "IUV picture of the photo, to move the poses onto its body (may be left out)"
        photo_iuv = gr.File(label=label, file_types=["image"], elem_id="photo_iuv", min_width=240, height=180)
    material = [photo, poses, photo_iuv]
    chosen = gr.HTML(elem_id="chosen")
    gr.on([field.change for field in material], page.preview, material, chosen, **QUIET)
    sampling = sampling_controls(page)
    with gr.Row():
        sample = gr.Button("Use the sample", elem_id="sample")
        go = gr.Button("Animate", variant="primary", elem_id="animate")
        stop = gr.Button("Stop", variant="stop", elem_id="stop")
    shown = gr.HTML(elem_id="own")
    video = gr.Video(label="Video", loop=True, elem_id="video", interactive=False, height=400)
    strip = gr.Image(label="Strip: photo, poses and frames", type="filepath", interactive=False)
    archive = gr.File(label="Download: video, strip, material and code", interactive=False, elem_id="download")
    how = gr.Markdown(elem_id="code")
    files = str(SAMPLE / "photo.png"), [str(path) for path in sorted((SAMPLE / "poses").glob("*.png"))], None
    sample.click(lambda: files, None, material, api_visibility="private")
    outputs = [shown, video, strip, archive, how]
    run = go.click(page.animate, [*material, *sampling], outputs, api_name="animate", **DEVICE)
    stop.click(None, cancels=[run], api_visibility="private")


def build_page(studio: Studio) -> gr.Blocks:
    """Return the page of a model; if the model draws figures, it opens with one that already moves."""
    page = Page(studio)
    config, settings = studio.pipeline(studio.has_few).config, studio.defaults(studio.has_few)
    opening = None
    if (config.default_height, config.default_width) == figures.SIZE:
        person, motion = next(iter(figures.PERSONS)), next(iter(figures.MOTIONS))
        poses = figures.poses(person, motion)
        frames = list(studio.frames(figures.photo(person), poses, settings))
        opening = page.loop(person, poses, frames)
    with gr.Blocks(title="DreamPose", analytics_enabled=False, delete_cache=(KEPT, KEPT)) as blocks:
        gr.Markdown("# DreamPose\nA photo and a sequence of poses become a video of that person.")
        if opening is not None:
            with gr.Tab("Live"):
                live_tab(page, opening)
        with gr.Tab("Your own"):
            own_tab(page)
    return blocks.queue(max_size=MAX_QUEUE)


def main(options: argparse.Namespace, **launch_options) -> tuple:
    """Build the page and serve it; return what `launch` returns."""
    blocks = build_page(Studio(options.model, options.device))
    return blocks.launch(
        server_port=options.port,
        css=views.STYLE + views.choice_style(),
        allowed_paths=[str(SAMPLE)],
        max_file_size=uploads.MAX_BYTES,
        footer_links=["api"],
        mcp_server=options.mcp or None,  # `None` leaves it to Gradio's own variable
        **launch_options,
    )


if __name__ == "__main__":
    main(parse_args())
