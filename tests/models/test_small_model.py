"""The loss of the small model's image encoder, against values computed by hand, and how a small model samples."""

import json

import pytest
import torch

from pipeline_dreampose import DreamPosePipeline
from tests.launch import ROOT
from training.models.small_model import ImageEncoderTrainer, build_image_encoder, build_pipeline, build_vae


TINY = ROOT / "model_card" / "tiny"


def test_image_encoder_targets_by_hand():
    """Heads with correct colours have no colour loss; a uniform part prediction costs its log probability."""
    trainer = ImageEncoderTrainer(build_image_encoder(16, 8, 32, 1), grid=1)
    with torch.no_grad():
        for head in (trainer.color_head, trainer.body_head):
            head.weight.zero_()
            head.bias.zero_()
        trainer.color_head.bias.copy_(torch.tensor([0.1, 0.2, 0.3]))
    pictures = torch.tensor([0.1, 0.2, 0.3]).view(1, 3, 1, 1).expand(1, 3, 16, 16)
    values = trainer(pictures, torch.full((1, 16, 16), 4, dtype=torch.uint8), torch.zeros(1, 2, 16, 16))
    assert values["color"].item() == pytest.approx(0, abs=1e-10) and values["uv"].item() == 0
    assert values["part"].item() == pytest.approx(torch.log(torch.tensor(25.0)).item(), rel=1e-5)


def test_a_new_small_model_samples_as_the_shipped_one():
    shipped, vae = DreamPosePipeline.load_config(TINY), build_vae()
    new = build_pipeline(vae, build_image_encoder(16, 8, 32, 1), 160, 128, (16, 16, 16))
    names = {name for name in new.config if name.startswith("default_")}
    assert "default_guidance_stop" in names and all(new.config[name] == shipped[name] for name in names)
    stored = json.loads((TINY / "scheduler" / "scheduler_config.json").read_text())
    assert stored == json.loads(new.scheduler.to_json_string())
