"""The loss of the small model's image encoder, against values computed by hand."""

import pytest
import torch

from training.models.small_model import ImageEncoderTrainer, build_image_encoder


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
