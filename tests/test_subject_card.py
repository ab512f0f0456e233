"""The card of a subject, the pictures before and after it, and the embedded model's card; no run fails for them."""

import json

import numpy as np
import pytest
import torch
import yaml
from huggingface_hub import ModelCard
from PIL import Image

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
from training import model_card, subject_results
from training.comparison import draw_before_after
from training.data.subject_photos import load_photos
from training.subject_card import read_license, write_subject_card
from training.subject_options import SubjectSampleOptions
from training.subject_results import write_subject


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
    """Two photos, of which only the first has the pipeline's aspect."""
    for number, size in enumerate([(HEIGHT, WIDTH), (40, 40)]):
        save_photo(tmp_path / "photos", f"{number}", get_dummy_image(number, *size), get_dummy_iuv(number, *size))
    return load_photos(tmp_path / "photos")


def layers_of_subject(tmp_path):
    """The arguments of `save_lora_weights` for a subject whose weights are drawn at random."""
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
    monkeypatch.setattr("training.subject_card.read_license", lambda model, revision: "creativeml-openrail-m")
    (tmp_path / "out").mkdir()
    get_dummy_image().save(tmp_path / "strip.png")
    path = write_subject_card(
        tmp_path / "out",
        repo_id="someone/alice",
        base_model="someone/base",
        revision=COMMIT,
        num_photos=3,
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
        "tags": [*model_card.TAGS, "lora"],
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
        "a LoRA of UNet and adapter and the VAE's decoder, trained on 3 photos of that person.\n",
        f"It is attached to [someone/base](https://huggingface.co/someone/base) at `{COMMIT}`.",
        "![Before and after](sample.png)",
        f'from_pretrained(model, revision="{COMMIT}", trust_remote_code=True)',
        'pipe.load_lora_weights("someone/alice")',
        "as far as that person agreed to the training",
        "do not pass it off as a recording",
        "Layers of rank 16 beside its own",
        "for 500 steps of UNet and adapter and 1,500 steps of the VAE's decoder, of 4 samples each.",
        "| psnr ↑ |\n| --- |\n| 21.5 |",
        "| the weights, as those that they started from | CreativeML OpenRAIL-M, whose",
        "| the photos, which are no part of this |",
        "CC BY-SA 3.0",
        f"torch {torch.__version__}",
        "@inproceedings{karras2023dreampose",
    ):
        assert part in text, part
    assert "{{" not in text and "{%" not in text and "\n\n\n" not in text and text.endswith("```\n")
    settings = yaml.safe_load(text.split("```yaml\n")[1].split("```")[0])
    assert settings == OPTIONS and "zoe" not in text and str(tmp_path) not in text


def test_cards_of_what_is_on_this_machine_alone(tmp_path):
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

    # All weights were trained: the card of a pipeline, which is no longer one of stage 1.
    path = write_subject_card(tmp_path / "full", **how, num_steps={"denoiser": 2}, rank=None, options_yaml="seed: 0")
    text, data = path.read_text(), ModelCard.load(path).data.to_dict()
    assert data["tags"] == list(model_card.TAGS) and "load_lora_weights" not in text
    assert "of stage 2: UNet,\nadapter and VAE decoder were trained on one person.\n" in text and "stage 1" not in text
    assert "It was trained on 1 photo of that person\nwith their DensePose maps, for 2 steps of UNet and" in text
    assert "`training/finetune.py --config`" in text and "{%" not in text and "\n\n\n" not in text
    assert 'from_pretrained("path/to/this/folder", trust' in text


def test_the_licence_is_that_of_the_model_s_own_card(tmp_path, monkeypatch):
    assert read_license(str(tmp_path)) is None
    (tmp_path / "README.md").write_text("---\nlicense: mit\n---\n")
    assert read_license(str(tmp_path)) == "mit"
    for text in ("# No front matter", "---\nlicense: [\n---\n", "---\ntags: [a]\n---\n"):
        (tmp_path / "README.md").write_text(text)
        assert read_license(str(tmp_path)) is None
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert read_license("someone/base") is None and read_license("a/b/c") is None


def test_pictures_before_and_after(tmp_path, photos):
    pipe, subject = get_dummy_pipeline(), save_subject(tmp_path / "subject", seed=3)
    before = {key: value.clone() for key, value in pipe.unet.state_dict().items()}
    grid = np.asarray(draw_before_after(pipe, subject, photos, num_inference_steps=2, seed=5))
    assert before.keys() == pipe.unet.state_dict().keys() and pipe.get_list_adapters() == {}
    assert all(torch.equal(before[key], value) for key, value in pipe.unet.state_dict().items())

    def cell(row, column):
        """Counted from the right below, since titles stand on the left."""
        bottom, right = grid.shape[0] - (3 - row) * (HEIGHT + 4), grid.shape[1] - (1 - column) * (WIDTH + 4)
        return grid[bottom - HEIGHT : bottom, right - WIDTH : right]

    assert np.array_equal(cell(0, 0), np.asarray(photos[0]["iuv"]))
    assert np.array_equal(cell(1, 0), np.asarray(photos[0]["image"]))
    anew = get_dummy_pipeline()
    for row in (2, 3):
        for column in range(2):
            generator = torch.Generator().manual_seed(5)
            poses = [photos[column]["iuv"]] * 5
            frames = anew(photos[0]["image"], poses, frame_indices=[2], generator=generator, num_inference_steps=2)
            assert np.array_equal(cell(row, column), np.asarray(frames.frames[0][0])), (row, column)
        if row == 2:
            anew.load_lora_weights(subject)
    assert not np.array_equal(cell(2, 0), cell(3, 0))


def test_pictures_go_on_the_card_when_it_was_said_so(tmp_path, photos, capsys):
    pipe, out, layers = get_dummy_pipeline(), tmp_path / "out", layers_of_subject(tmp_path)
    how = {"base_model": str(tmp_path), "revision": None, "rank": 2, "sample_inference_steps": 1}
    words = (out, pipe, layers, photos, {"denoiser": 4})
    assert write_subject(*words, **how, repo_id="someone/alice") == ["README.md", FILE]
    assert (out / "before_after.png").is_file() and not (out / "sample.png").exists()
    assert f"Wrote the subject to {out}." in capsys.readouterr().out

    assert write_subject(*words, **how, hub_sample=True) == ["README.md", "sample.png", FILE]
    assert (out / "sample.png").read_bytes() == (out / "before_after.png").read_bytes()
    assert (
        "![The same photo and poses, without the subject and with it](sample.png)" in (out / "README.md").read_text()
    )
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


def test_the_embedded_model_s_card():
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
