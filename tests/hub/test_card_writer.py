"""The card of a subject, its pictures before and after, and the small model's card. Their errors fail no run."""

import json

import numpy as np
import pytest
import torch
import yaml
from huggingface_hub import ModelCard
from PIL import ExifTags, Image

from pipeline_dreampose import DreamPosePipeline
from tests.launch import ROOT
from tests.tiny_components import (
    HEIGHT,
    WIDTH,
    get_dummy_image,
    get_dummy_iuv,
    get_dummy_pipeline,
    save_photo,
    save_subject,
)
from training.hub import card_writer
from training.hub.card_writer import read_license, try_write_card, write_base_card, write_subject_card
from training.media.pictures import UnreadablePictures, copy_without_metadata, enlarge
from training.options.subject import SubjectSampleOptions
from training.subject import results as subject_results
from training.subject.photos import load_photos
from training.subject.results import draw_before_after, write_subject


FILE = "pytorch_lora_weights.safetensors"
COMMIT = "0123456789abcdef0123456789abcdef01234567"
OPTIONS = {
    "pretrained_model_name_or_path": "someone/base",
    "revision": COMMIT,
    "prior_dataset": "someone/frames",
    "rank": 16,
    "fit": "whole",
}
HIDDEN = {"instance_data_dir": "/home/zoe/alice", "output_dir": "alice", "hub_model_id": "someone/alice"}


@pytest.fixture
def photos(tmp_path):
    """Load two photos; only the first has the pipeline's aspect ratio."""
    for number, size in enumerate([(HEIGHT, WIDTH), (40, 40)]):
        save_photo(tmp_path / "photos", f"{number}", get_dummy_image(number, *size), get_dummy_iuv(number, *size))
    return load_photos(tmp_path / "photos")


def layers_of_subject(tmp_path):
    """Return the arguments of `save_lora_weights` for a subject with random weights."""
    save_subject(tmp_path / "drawn", seed=3)
    state, metadata = DreamPosePipeline.lora_state_dict(tmp_path / "drawn", return_lora_metadata=True)
    layers = {}
    for part in ("unet", "adapter", "vae"):
        start = f"{part}."
        layers[f"{part}_lora_layers"] = {k.removeprefix(start): v for k, v in state.items() if k.startswith(start)}
        layers[f"{part}_lora_adapter_metadata"] = {
            k.removeprefix(start): v for k, v in metadata.items() if k.startswith(start)
        }
    return layers


def test_the_card_of_a_lora(tmp_path, monkeypatch):
    monkeypatch.setattr(card_writer, "read_license", lambda *_: {"license": "creativeml-openrail-m"})
    (tmp_path / "out").mkdir()
    get_dummy_image().save(tmp_path / "strip.png")
    path = write_subject_card(
        tmp_path / "out",
        repo_id="someone/alice",
        base_model="someone/base",
        revision=COMMIT,
        num_photos=3,
        prior_dataset="someone/frames",
        prior_prob=0.5,
        num_steps={"denoiser": 500, "decoder": 1500},
        rank=16,
        num_samples=4,
        options_yaml=yaml.safe_dump(OPTIONS | HIDDEN, sort_keys=False),
        figures={"psnr": 21.5, "l1": float("nan")},
        picture=tmp_path / "strip.png",
        caption="Before and after",
    )
    assert ModelCard.load(path).data.to_dict() == {
        "license": "creativeml-openrail-m",
        "pipeline_tag": "image-to-video",
        "library_name": "diffusers",
        "base_model": "someone/base",
        "base_model_relation": "adapter",
        "tags": [*card_writer.TAGS, "lora"],
        "widget": [{"text": "Before and after", "output": {"url": "sample.png"}}],
        "model-index": [
            {
                "name": "alice",
                "results": [
                    {
                        "task": {"type": "image-to-video"},
                        "dataset": {"type": "local", "name": "pictures of that person"},
                        "metrics": [{"type": "psnr", "value": 21.5}],
                    }
                ],
            }
        ],
    }
    text = path.read_text()
    for part in (
        "# alice\n",
        "a LoRA of UNet and adapter and the VAE's decoder, trained on 3 photos of that person (50% of the"
        " samples: of others, from [someone/frames](https://huggingface.co/datasets/someone/frames)).\n",
        f"It is attached to [someone/base](https://huggingface.co/someone/base) at `{COMMIT}`.",
        "![Before and after](sample.png)",
        f'from_pretrained(model, revision="{COMMIT}", trust_remote_code=True)',
        'pipe.load_lora_weights("someone/alice")',
        "if that person agreed to the training",
        "do not pass it off as a recording",
        "LoRA layers of rank 16 were trained on",
        "for 500 steps of UNet and adapter and 1,500 steps of the VAE's decoder, of 4 samples each.",
        "| psnr ↑ |\n| --- |\n| 21.5 |",
        "| the weights, like those that they started from | CreativeML OpenRAIL-M, whose",
        "| the photos (not included) |",
        "CC BY-SA 3.0",
        f"torch {torch.__version__}",
        "@inproceedings{karras2023dreampose",
    ):
        assert part in text, part
    assert "{{" not in text and "{%" not in text and "\n\n\n" not in text and text.endswith("```\n")
    settings = yaml.safe_load(text.split("```yaml\n")[1].split("```")[0])
    assert settings == OPTIONS and "zoe" not in text and str(tmp_path) not in text


def test_cards_of_a_local_model(tmp_path):
    (tmp_path / "base").mkdir()
    (tmp_path / "base" / "README.md").write_text("---\nlicense: mit\n---\n")
    how = {"repo_id": None, "base_model": str(tmp_path / "base"), "revision": "main", "num_photos": 1}
    path = write_subject_card(tmp_path / "lora", **how, num_steps={"decoder": 1}, rank=4)
    text, data = path.read_text(), ModelCard.load(path).data.to_dict()
    assert data.keys() == {"library_name", "license", "pipeline_tag", "tags"} and data["license"] == "mit"
    assert "a LoRA of the VAE's decoder, trained on 1 photo of that person.\n" in text and "Not measured." in text
    assert 'model = "path/to/the/model"' in text and "from_pretrained(model, trust_remote_code=True)" in text
    assert "sample" not in text.split("## Training")[0] and "main" not in text and "```yaml" not in text
    assert "for 1 step of the VAE's decoder." in text and str(tmp_path) not in text

    # After full training, the card is that of a pipeline of stage 2.
    path = write_subject_card(tmp_path / "full", **how, num_steps={"denoiser": 2}, rank=None, options_yaml="seed: 0")
    text, data = path.read_text(), ModelCard.load(path).data.to_dict()
    assert data["tags"] == list(card_writer.TAGS) and "load_lora_weights" not in text
    assert "of stage 2:\nUNet and adapter were trained on one person.\n" in text and "stage 1" not in text
    assert "It was trained on 1 photo of that person\nwith their DensePose maps, for 2 steps of UNet and" in text
    assert "`training/finetune.py --config`" in text and "{%" not in text and "\n\n\n" not in text
    assert 'from_pretrained("path/to/this/folder", trust' in text


def test_the_licence_is_that_of_the_model_s_own_card(tmp_path, monkeypatch):
    assert read_license(str(tmp_path)) == {}
    (tmp_path / "README.md").write_text("---\nlicense: mit\n---\n")
    assert read_license(str(tmp_path)) == {"license": "mit"}
    for text in (
        "# No front matter",
        "---\nlicense: [\n---\n",
        "---\ntags: [a]\n---\n",
        "---\nlicense: [mit, apache-2.0]\n---\n",
        "---\nlicense: {mit: 1}\n---\n",
        "---\nlicense: 5\n---\n",
        "---\nlicense: Apache 2.0\n---\n",
        "---\nlicense: mit\ntags: 5\n---\n",
        "---\n- mit\n---\n",
    ):
        (tmp_path / "README.md").write_text(text)
        assert read_license(str(tmp_path)) == {}
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert read_license("someone/base") == {} and read_license("a/b/c") == {}


def test_a_licence_of_several_does_not_fail_a_card(tmp_path):
    (tmp_path / "README.md").write_text("---\nlicense: [mit, apache-2.0]\n---\n")
    how = {"base_model": str(tmp_path), "num_photos": 1, "num_steps": {"denoiser": 1}, "rank": 4}
    path = write_subject_card(tmp_path / "lora", repo_id=None, **how)
    assert ModelCard.load(path).data.license is None and "started from | as stated there |" in path.read_text()
    (tmp_path / "README.md").write_text("---\nlicense: [mit]\n---\n")
    assert read_license(str(tmp_path)) == {"license": "mit"}


def test_a_licence_of_its_own_is_named_on_the_card(tmp_path, monkeypatch):
    link = "https://example.com/LICENSE"
    text = "---\nlicense: other\nlicense_name: our-own\nlicense_link: {}\n---\n"
    (tmp_path / "README.md").write_text(text.format(link))
    terms = {"license": "other", "license_name": "our-own", "license_link": link}
    assert read_license(str(tmp_path)) == terms
    how = {"repo_id": None, "base_model": str(tmp_path), "num_photos": 1, "num_steps": {"denoiser": 1}}
    for rank in (4, None):
        path = write_subject_card(tmp_path / "out", **how, rank=rank)
        assert ModelCard.load(path).data.to_dict().items() >= terms.items()
        assert f"started from | [our-own]({link}) |" in path.read_text()
    path = write_subject_card(tmp_path / "out", **how, rank=4, license="mit")
    assert "our-own" not in path.read_text() and ModelCard.load(path).data.license == "mit"

    # The name of a file becomes a link only for a repository on the Hub.
    (tmp_path / "README.md").write_text(text.format("LICENSE.md"))
    assert read_license(str(tmp_path)) == {"license": "other", "license_name": "our-own"}
    monkeypatch.setattr(card_writer, "hf_hub_download", lambda *_, **__: str(tmp_path / "README.md"))
    link = "https://huggingface.co/someone/base/blob/v1/LICENSE.md"
    assert read_license("someone/base", "v1") == terms | {"license_link": link}
    for other in ("license_name: [a]\nlicense_link: 5", "license_name: A B\nlicense_link: javascript:x"):
        (tmp_path / "README.md").write_text(f"---\nlicense: other\n{other}\n---\n")
        assert read_license(str(tmp_path)) == {"license": "other"}


@pytest.mark.parametrize("phases", [("denoiser",), ("decoder",), ("denoiser", "decoder")])
@pytest.mark.parametrize("rank", [4, None])
def test_a_card_names_the_trained_parts(tmp_path, phases, rank):
    how = {"repo_id": None, "base_model": str(tmp_path), "num_photos": 1, "rank": rank}
    text = write_subject_card(tmp_path, **how, num_steps=dict.fromkeys(phases, 1)).read_text()
    text = " ".join(text.split())
    assert ("The loss of UNet and adapter is" in text) == ("denoiser" in phases)
    assert ("The loss of the decoder combines" in text) == ("decoder" in phases)
    parts = {"denoiser": "UNet and adapter", "decoder": "the VAE's decoder"}
    names = " and ".join(parts[phase] for phase in phases)
    verb = "was" if phases == ("decoder",) else "were"
    assert (f"a LoRA of {names}, trained" if rank else f"of stage 2: {names} {verb} trained on one person.") in text
    assert "  " not in text and ". Versions: torch" in text


def test_an_error_in_a_card_is_a_warning(tmp_path, caplog):
    def write(output_dir, repo_id):
        raise TypeError(f"unhashable {repo_id}")

    assert try_write_card(write, tmp_path, "alice") is None
    assert f"The card of {tmp_path} could not be written: unhashable None" in caplog.text
    path = try_write_card(write_base_card, tmp_path, "you/alice", base_model="a/b", dataset="procedural")
    assert '"you/alice"' in path.read_text()


def test_a_picture_on_a_card_has_no_metadata(tmp_path):
    """The photo is red on the left and blue on the right, with the mark of a phone that it needs a quarter turn."""
    photo = Image.new("RGB", (64, 32), "red")
    photo.paste("blue", (32, 0, 64, 32))
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation], exif[ExifTags.Base.Make] = 6, "Camera of Zoe"
    exif.get_ifd(ExifTags.IFD.GPSInfo)[ExifTags.GPS.GPSLatitudeRef] = "N"
    for suffix, how in ((".jpg", {"comment": "of Zoe"}), (".png", {}), (".webp", {"xmp": b"<x>of Zoe</x>"})):
        photo.save(tmp_path / f"photo{suffix}", exif=exif, **how)
        assert b"of Zoe" in (tmp_path / f"photo{suffix}").read_bytes()
        card = write_base_card(
            tmp_path, repo_id=None, base_model="a/b", dataset="procedural", picture=tmp_path / f"photo{suffix}"
        )
        sample = tmp_path / f"sample{suffix}"
        assert f"(sample{suffix})" in card.read_text() and b"Zoe" not in sample.read_bytes()
        with Image.open(sample) as image:
            assert dict(image.getexif()) == {} and image.size == (32, 64)
            pixels = np.asarray(image.convert("RGB")).astype(int)
        assert pixels[:24, :, 0].min() > 200 > 50 > pixels[40:, :, 0].max(), "what was left is above"
    copy_without_metadata(tmp_path / "photo.jpg", tmp_path / "photo.jpg")
    assert b"Zoe" not in (tmp_path / "photo.jpg").read_bytes()

    frames = [Image.new("RGB", (8, 8), color) for color in ("red", "lime", "blue")]
    how = {"save_all": True, "append_images": frames[1:], "duration": [40, 80, 120], "loop": 0}
    for suffix, more in ((".gif", {"comment": "of Zoe"}), (".webp", {"exif": exif, "lossless": True})):
        frames[0].save(tmp_path / f"video{suffix}", **how, **more)
        assert b"of Zoe" in (tmp_path / f"video{suffix}").read_bytes()
        copy_without_metadata(tmp_path / f"video{suffix}", tmp_path / f"copy{suffix}")
        assert b"Zoe" not in (tmp_path / f"copy{suffix}").read_bytes()
        with Image.open(tmp_path / f"copy{suffix}") as image:
            assert image.n_frames == 3 and image.info["loop"] == 0
            for number, frame in enumerate(frames):
                image.seek(number)
                image.load()
                assert image.info["duration"] == how["duration"][number]
                assert np.allclose(image.convert("RGB").getpixel((4, 4)), frame.getpixel((4, 4)), atol=8)

    (tmp_path / "none.png").write_text("none")
    with pytest.raises(UnreadablePictures, match="`picture` must be a readable picture, got '.*none.png'"):
        copy_without_metadata(tmp_path / "none.png", tmp_path / "copy.png")


def test_pictures_before_and_after(tmp_path, photos):
    pipe, subject = get_dummy_pipeline(), save_subject(tmp_path / "subject", seed=3)
    before = {key: value.clone() for key, value in pipe.unet.state_dict().items()}
    grid = np.asarray(draw_before_after(pipe, subject, photos, num_inference_steps=2, seed=5))
    assert before.keys() == pipe.unet.state_dict().keys() and pipe.get_list_adapters() == {}
    assert all(torch.equal(before[key], value) for key, value in pipe.unet.state_dict().items())

    scale = 10  # makes 320 pixels of the model's 32
    height, width = scale * HEIGHT, scale * WIDTH

    def cell(row, column):
        """Cut out a cell, counted from the lower right, since the left has titles."""
        bottom, right = grid.shape[0] - (3 - row) * (height + 4), grid.shape[1] - (1 - column) * (width + 4)
        return grid[bottom - height : bottom, right - width : right]

    pose = np.kron(np.asarray(photos[0]["iuv"]), np.ones((scale, scale, 1), np.uint8))
    assert np.array_equal(cell(0, 0), pose)
    shown = photos[0]["image"].resize((width, height), Image.Resampling.LANCZOS)
    assert np.array_equal(cell(1, 0), np.asarray(shown))
    anew = get_dummy_pipeline()
    for row in (2, 3):
        for column in range(2):
            generator = torch.Generator().manual_seed(5)
            poses = [photos[column]["iuv"]] * 5
            frames = anew(photos[0]["image"], poses, frame_indices=[2], generator=generator, num_inference_steps=2)
            expected = enlarge(frames.frames[0][0], scale)
            assert np.array_equal(cell(row, column), np.asarray(expected)), (row, column)
        if row == 2:
            anew.load_lora_weights(subject)
    assert not np.array_equal(cell(2, 0), cell(3, 0))


def test_pictures_go_on_the_card_if_an_option_says_so(tmp_path, photos, capsys):
    pipe, out, layers = get_dummy_pipeline(), tmp_path / "out", layers_of_subject(tmp_path)
    how = {"base_model": str(tmp_path), "revision": None, "rank": 2, "sample_inference_steps": 1}
    words = (out, pipe, layers, photos, {"denoiser": 4})
    assert write_subject(*words, **how, repo_id="someone/alice") == ["README.md", FILE]
    assert (out / "before_after.png").is_file() and not (out / "sample.png").exists()
    assert f"Wrote the subject to {out}." in capsys.readouterr().out

    assert write_subject(*words, **how, hub_sample=True) == ["README.md", "sample.png", FILE]
    assert (out / "sample.png").read_bytes() == (out / "before_after.png").read_bytes()
    assert f"![{subject_results.CAPTION}](sample.png)" in (out / "README.md").read_text()
    assert write_subject(*words, **how) == ["README.md", FILE], "what lies there from before is not pushed"

    Image.new("RGB", (8, 8)).save(tmp_path / "chosen.png")
    (out / "before_after.png").unlink()
    how |= {"sample_inference_steps": 0}
    assert write_subject(*words, **how, picture=str(tmp_path / "chosen.png")) == ["README.md", "sample.png", FILE]
    assert (out / "sample.png").read_bytes() == (tmp_path / "chosen.png").read_bytes()
    assert not (out / "before_after.png").exists()


def test_no_run_fails_for_pictures_or_card(tmp_path, photos, caplog, monkeypatch):
    def fail(*words):
        raise RuntimeError("no memory is left")

    monkeypatch.setattr(subject_results, "draw_before_after", fail)
    out, layers = tmp_path / "out", layers_of_subject(tmp_path)
    out.mkdir()
    (out / "before_after.png").touch()
    how = {"base_model": str(tmp_path), "revision": None, "rank": 2, "hub_sample": True}
    words = (out, get_dummy_pipeline(), layers, photos, {"denoiser": 4})
    assert write_subject(*words, **how) == ["README.md", FILE] and (out / FILE).is_file()
    assert f"{out / 'before_after.png'} could not be drawn: no memory is left" in caplog.text
    assert not (out / "before_after.png").exists(), "an earlier subject's"

    (out / "README.md").unlink()
    assert write_subject(*words, **how, picture=str(tmp_path / "none.png")) == [FILE]
    assert f"The card of {out} could not be written: `picture` must be a file of" in caplog.text


def test_pictures_that_are_not_drawn_cannot_be_pushed():
    assert SubjectSampleOptions() == SubjectSampleOptions(10, False)
    with pytest.raises(ValueError, match="`sample_inference_steps` must be a finite number, at least 0, got -1"):
        SubjectSampleOptions(-1)
    with pytest.raises(
        ValueError, match="`hub_sample` must go with `sample_inference_steps` above 0, got True with 0"
    ):
        SubjectSampleOptions(0, True)


def test_the_small_model_s_card():
    folder = ROOT / "model_card" / "tiny"
    card = ModelCard((folder / "README.md").read_text(), ignore_metadata_errors=False)
    rows = json.loads((folder / "evaluation" / "evaluation.json").read_text())["rows"]["model"]
    (result,) = card.data.to_dict()["model-index"][0]["results"]
    assert result["metrics"] == [{"type": n, "value": round(row["mean"], 4)} for n, row in rows.items()]
    assert (card.data.license, card.data.library_name, card.data.pipeline_tag) == (
        "apache-2.0",
        "diffusers",
        "image-to-video",
    )
    assert all((folder / example["output"]["url"]).is_file() for example in card.data.widget)
    assert card.data.base_model is None and card.data.datasets is None, "made from nothing, on drawings"
    for part in ("## Use", "## Intended use and limits", "consent", "## Licences", "CC BY-SA 3.0", "@inproceedings{"):
        assert part in card.text
