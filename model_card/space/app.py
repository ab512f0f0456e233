# Copyright 2026 The DreamPose for diffusers authors
# Licensed under the Apache License, Version 2.0
"""A page that moves a person live in a browser.

make page                                                    # the embedded small model, at http://127.0.0.1:7860
python model_card/space/app.py --model you/dreampose --device cuda
"""

import argparse
import html
import math
import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory


ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))  # a Space has the project's files in the same places

try:
    import spaces  # ZeroGPU wants it to be imported before torch
except ImportError:
    spaces = None
import gradio as gr  # noqa: E402

from model_card.space import figures, uploads, views  # noqa: E402
from model_card.space.dances import DanceReader  # noqa: E402
from model_card.space.studio import MAX_STEPS, Settings, Studio, python_lines, shell_command, write_result  # noqa: E402
from training.media import animation  # noqa: E402
from training.media.outputs import write_frame  # noqa: E402
from training.media.pictures import poses_as_pictures  # noqa: E402


SAMPLE = ROOT / "model_card" / "sample"
MAX_QUEUE = 32
KEPT = 1800  # seconds that the files of a visitor are kept
DEVICE = {"concurrency_id": "device", "concurrency_limit": 1}  # one video at a time
QUIET = {"trigger_mode": "always_last", "show_progress": "minimal", "api_visibility": "private"}
LIVE_CHUNK = 2  # frames that are made, and so shown, together
OWN_CHUNK = 4  # the same of a visitor's own video
GPU_SECONDS = 120  # that ZeroGPU gives to a video
ON_ZERO_GPU = bool(os.environ.get("SPACES_ZERO_GPU"))  # a GPU that a Space has only while a function asks for it
FEW, FULL = "Few steps", "Full"


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Return the options of a command line.

    A Space sets the model by its variable `DREAMPOSE_MODEL`, and DensePose by `DREAMPOSE_DENSEPOSE`.
    """
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    model = os.environ.get("DREAMPOSE_MODEL", "model_card/tiny")
    parser.add_argument("--model", default=model, help="pipeline folder or Hub id (default: the small model)")
    parser.add_argument("--device", help="cpu, cuda, mps, ... (default: a GPU if there is one)")
    parser.add_argument(
        "--densepose",
        default=os.environ.get("DREAMPOSE_DENSEPOSE"),
        metavar="FILE",
        help="TorchScript DensePose from a source that you trust, to take poses from visitors' videos",
    )
    parser.add_argument("--port", type=int, help="port of the page (default: the first free one from 7860)")
    parser.add_argument("--mcp", action="store_true", help="offer the animation to language models, as a tool by MCP")
    return parser.parse_args(argv)


class Page:
    """What the page's controls do. Each method turns a bad input into a message of the page."""

    def __init__(self, studio: Studio, reader: DanceReader | None = None):
        self.studio, self.reader = studio, reader
        self.model = FEW if studio.has_few else FULL

    def defaults(self, model: str) -> tuple[int, float, float]:
        """Return the model's number of steps and scales for `"Few steps"` or `"Full"`."""
        with saying_errors():
            settings = self.studio.defaults(model == FEW)
            return tuple(settings.call_options.values())

    def settings(self, model, steps, photo_scale, pose_scale, seed, subject="") -> Settings:
        """Return what the controls say. A browser sends whole numbers with or without a point."""
        whole = [int(value) if isinstance(value, float) and value.is_integer() else value for value in (steps, seed)]
        return Settings(model == FEW, whole[0], photo_scale, pose_scale, whole[1], (subject or "").strip())

    def live(self, person, motion, *sampling) -> Iterator[str]:
        """Yield the stage with each frame of a drawn person in a drawn motion, and at last the moving whole."""
        with saying_errors():
            poses, done = figures.poses(person, motion), []
            for frame in self.studio.frames(figures.photo(person), poses, self.settings(*sampling), LIVE_CHUNK):
                done.append(frame)
                shown = [("Photo", [figures.photo(person)]), ("Poses", [poses[len(done) - 1]]), (person, [frame])]
                yield views.stage(shown, f"Frame {len(done)} of {len(poses)}, made now")
            if len(done) == len(poses):
                yield self.loop(person, poses, done)

    def opening(self) -> str:
        """Return the stage with the first person in the first motion, made before anybody visits the page."""
        person, motion = next(iter(figures.PERSONS)), next(iter(figures.MOTIONS))
        poses = figures.poses(person, motion)
        if ON_ZERO_GPU:  # which works for visitors alone
            return views.stage([("Poses", views.there_and_back(poses))], "Choose a person and a motion.")
        settings = self.studio.defaults(self.model == FEW)
        return self.loop(person, poses, list(self.studio.frames(figures.photo(person), poses, settings)))

    def loop(self, person, poses, frames) -> str:
        """Return the stage with a finished motion, which the browser repeats without asking the model again."""
        photo = ("Photo", [figures.photo(person)])
        shown = [photo, ("Poses", views.there_and_back(poses)), (person, views.there_and_back(frames))]
        return views.stage(shown, f"{len(frames)} frames, made from the photo and the poses")

    def pose(self, person, turn, left, right, elbows, *sampling) -> str:
        """Return the stage with a person in the pose of the sliders."""
        with saying_errors():
            iuv = figures.still_pose(person, turn, left, right, elbows)
            frames = list(self.studio.frames(figures.photo(person), [iuv], self.settings(*sampling)))
            shown = [("Photo", [figures.photo(person)]), ("Poses", [iuv]), (person, frames)]
            return views.stage(shown, "Your pose, made now")

    def preview(self, photo, poses, photo_iuv, dance=None) -> Iterator[str]:
        """Yield the stage with an own photo and its poses, moved onto its body, before anything is sampled."""
        if not photo or not (poses or dance):
            yield ""
            return
        with saying_errors():
            upload = uploads.Upload(photo, poses, photo_iuv, dance, self.reader)
            shown = ("Photo", [views.small(upload.photo)])
            for number in upload.find_poses():
                yield views.stage([shown], f"Finding the poses: frame {number}")
            material = upload.read()
            title = "Poses on the photo's body" if photo_iuv or dance else "Poses as they are"
            pictures = poses_as_pictures(material.poses)
            yield views.stage([shown, (title, pictures)], f"{len(pictures)} poses", material.fps)

    def animate(
        self,
        photo,
        poses,
        photo_iuv=None,
        model=None,
        steps=None,
        photo_scale=None,
        pose_scale=None,
        seed=0,
        subject="",
        dance=None,
    ) -> Iterator[tuple]:
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
            subject: Hub id of a LoRA of this person, which everybody can read. It may be left out.
            dance: Ordinary video of a person who moves, instead of the poses, where the page has a DensePose.
        Returns:
            The newest frames as HTML, and at last the video, a strip of its frames, an archive, and how to repeat it.
        """
        with saying_errors(), TemporaryDirectory(prefix="dreampose-") as folder:
            began, folder = time.monotonic(), Path(folder)
            settings = self.settings(model, steps, photo_scale, pose_scale, seed, subject)
            upload = uploads.Upload(photo, poses, photo_iuv, dance, self.reader)
            shown = ("Photo", [views.small(upload.photo)])
            for number in upload.find_poses():
                yield views.stage([shown], f"Finding the poses: frame {number}"), *[gr.skip()] * 4
            material = upload.read()
            frames = []
            for chunk in self.chunks(folder, material, settings):
                frames += chunk
                note = f"Frame {len(frames)} of {len(material.poses)}"
                newest = views.stage([shown, ("Newest frames", chunk)], note, material.fps, once=True)
                yield newest, *[gr.skip()] * 4
            if len(frames) < len(material.poses):
                raise ValueError("The video was stopped. Press Animate to start it again.")
            archive = write_result(folder, self.studio, material, frames, settings)
            note = f"{len(frames)} frames in {time.monotonic() - began:.1f} seconds"
            video, strip = (str(archive.with_suffix("") / name) for name in ("video.mp4", "video.png"))
            shown = [shown, ("Poses", poses_as_pictures(material.poses)), ("Video", frames)]
            final = views.stage(shown, note, material.fps)
            yield final, video, strip, str(archive), code(self.studio, material, settings)

    def chunks(self, folder: Path, material: uploads.Material, settings: Settings) -> Iterator[list]:
        """Yield the frames of a video by about `OWN_CHUNK`, as they are made, and write them into a folder."""
        (folder / "frames").mkdir()
        total, chunk = len(material.poses), []
        size = math.ceil(total / math.ceil(total / OWN_CHUNK))  # the pipeline's chunks are equal
        frames = self.studio.frames(material.photo, material.poses, settings, OWN_CHUNK)
        for index, frame in enumerate(frames):
            write_frame(frame, animation.frame_path(folder / "frames", index))
            chunk.append(frame)
            if len(chunk) == size or index == total - 1:
                yield chunk
                chunk = []


@contextmanager
def saying_errors() -> Iterator[None]:
    """Show the sentence of a `ValueError` on the page. Other errors are bugs, and the page hides their text."""
    try:
        yield
    except ValueError as error:
        # The sentence may hold a file's name, and the page shows HTML.
        # Without a traceback, which a visitor could flood the log with.
        raise gr.Error(html.escape(str(error), quote=False), duration=None, print_exception=False) from error


def code(studio: Studio, material: uploads.Material, settings: Settings) -> str:
    """Return how to make a video again, as Markdown."""
    python, shell = python_lines(studio, material, settings), shell_command(studio, material, settings)
    where = "Unpack the download in a clone of the project. Each of these makes exactly this video again:"
    return f"{where}\n\n```python\n{python}```\n\n```bash\n{shell}\n```"


def sampling_controls(page: Page) -> list[gr.components.Component]:
    """Draw the controls of sampling, and return them in the order of `Page.settings`."""
    steps, photo_scale, pose_scale = page.defaults(page.model)
    choices = [FEW, FULL] if page.studio.has_few else [FULL]
    more = "1 adds nothing. Larger values follow it more, and take longer."
    with gr.Accordion("How it is sampled", open=False):
        info = "Few steps is live. Full takes longer and follows the scales below."
        model = gr.Radio(choices, value=page.model, label="Model", info=info)
        steps = gr.Slider(
            1, MAX_STEPS, steps, step=1, label="Steps", info="Denoising steps of each frame. More take longer."
        )
        info = "How closely the frames follow the photo: " + more
        photo_scale = gr.Slider(0, 10, photo_scale, label="Photo scale", info=info)
        info = "How closely the frames follow the poses: " + more
        pose_scale = gr.Slider(0, 10, pose_scale, label="Pose scale", info=info)
        info = "The noise that all frames share; another number is another try."
        seed = gr.Number(0, precision=0, minimum=0, label="Seed", info=info)
    model.input(page.defaults, model, [steps, photo_scale, pose_scale], api_visibility="private")
    return [model, steps, photo_scale, pose_scale, seed]


def live_tab(page: Page) -> None:
    """Draw the drawn persons, their motions and the sliders of their joints."""
    gr.Markdown("The model has never seen these drawn people and motions. Choose some, and it makes the frames now.")
    shown = gr.HTML(page.opening(), elem_id="live")
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


def file_fields(page: Page) -> tuple[list[gr.File], list[gr.File]]:
    """Draw the fields of a visitor's files; return those that every page has, and that of a dance if there is one."""
    photo_types = {"file_types": ["image"], "min_width": 240, "height": 180}
    with gr.Row():
        photo = gr.File(label="Photo of the person", elem_id="photo", **photo_types)
        poses = gr.File(
            label="Poses: IUV pictures or one video", file_count="multiple", elem_id="poses", height=180, min_width=240
        )
        dance = []
        if page.reader is not None:
            types = {"file_types": ["video"], "min_width": 240, "height": 180}
            dance = [gr.File(label="Or a dance: an ordinary video of one person", elem_id="dance", **types)]
        label = "The photo's own pose, if you have it"
        photo_iuv = gr.File(label=label, elem_id="photo_iuv", **photo_types)
    return [photo, poses, photo_iuv], dance


def own_tab(page: Page) -> None:
    """Draw the fields of a visitor's own photo and poses, and what is made of them."""
    gr.Markdown(
        f"Drop a photo of a person ({uploads.PICTURE_LIMIT}), and poses: IUV pictures of DensePose, a lossless video"
        f" of them or a `.npy` file ({uploads.POSE_LIMIT}). With an IUV picture of the photo, the poses are moved onto"
        " its body."
    )
    sample = gr.Button("Use the sample", elem_id="sample", size="sm")
    material, dance = file_fields(page)
    chosen = gr.HTML(elem_id="chosen")
    changed = [field.change for field in (*material, *dance)]
    gr.on(changed, page.preview, [*material, *dance], chosen, **QUIET, **(DEVICE if dance else {}))
    sampling = sampling_controls(page)
    info = "Hub id of a LoRA of this person (may be left out). Only safetensors that everybody can read are loaded."
    subject = gr.Textbox("", label="Subject", info=info, placeholder="you/dreampose-anna", max_length=100)
    with gr.Row():
        go = gr.Button("Animate", variant="primary", elem_id="animate")
        stop = gr.Button("Stop", variant="stop", elem_id="stop")
    shown = gr.HTML(elem_id="own")
    with gr.Column(visible=False) as results:
        video = gr.Video(label="Video", loop=True, elem_id="video", interactive=False, height=400)
        strip = gr.Image(label="Strip: photo, poses and frames", type="filepath", interactive=False)
        archive = gr.File(label="Download: video, strip, material and code", interactive=False, elem_id="download")
        how = gr.Markdown(elem_id="code")
    files = str(SAMPLE / "photo.png"), [str(path) for path in sorted((SAMPLE / "poses").glob("*.png"))], None
    sample.click(lambda: files, None, material, api_visibility="private")
    outputs = [shown, video, strip, archive, how]
    given = [*material, *sampling, subject, *dance]
    run = go.click(page.animate, given, outputs, api_name="animate", show_progress_on=shown, **DEVICE)
    run.success(lambda: gr.Column(visible=True), None, results, api_visibility="private")
    stop.click(None, cancels=[run], api_visibility="private")


def build_page(studio: Studio, reader: DanceReader | None = None) -> gr.Blocks:
    """Return the page of a model; if the model draws figures, it opens with one that already moves."""
    page = Page(studio, reader)
    config = studio.pipeline(studio.has_few).config
    has_live = (config.default_height, config.default_width) == figures.SIZE
    with gr.Blocks(title="DreamPose", analytics_enabled=False, delete_cache=(KEPT, KEPT)) as blocks:
        gr.Markdown("# DreamPose\nA photo and a sequence of poses become a video of that person.")
        if has_live:
            with gr.Tab("Live"):
                live_tab(page)
        with gr.Tab("Your own"):
            own_tab(page)
    return blocks.queue(max_size=MAX_QUEUE)


def main(options: argparse.Namespace, **launch_options) -> tuple:
    """Build the page and serve it; return what `launch` returns."""
    on_gpu = spaces.GPU(duration=GPU_SECONDS) if spaces else lambda function: function
    studio = Studio(options.model, options.device, on_gpu)
    if ON_ZERO_GPU:  # which wants models to be loaded at the start
        for few in {studio.has_few, False}:
            studio.pipeline(few)
    reader = None
    if options.densepose:
        reader = DanceReader(options.densepose, "cpu" if ON_ZERO_GPU else studio.device)
    blocks = build_page(studio, reader)
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
