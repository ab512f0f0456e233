"""Phases of stage 2: where each resumes, and the decoder's loss."""

import json
import shutil

import pytest
import torch

from tests.tiny_components import HEIGHT, WIDTH, get_dummy_pipeline
from training.data.random_crops import to_pixel_values
from training.models.autoencoder import VAETrainer
from training.subject.phases import reconstruct, resume_points


def test_resume_points_of_both_phases(tmp_path):
    checkpoints = {phase: tmp_path / phase / "checkpoint-000002" for phase in ("denoiser", "decoder")}
    assert resume_points(tmp_path, None) == {"denoiser": None, "decoder": None}
    assert resume_points(tmp_path, "latest", ["decoder"]) == {"decoder": "latest"}
    for path in checkpoints.values():
        path.mkdir(parents=True)
        (path / "state.json").write_text(json.dumps({"global_step": 2, "files": {}}))
    assert resume_points(tmp_path, checkpoints["decoder"]) == {"denoiser": "latest", "decoder": checkpoints["decoder"]}
    with pytest.raises(
        ValueError, match="`output_dir` must not hold a checkpoint that .* got .*decoder/checkpoint-000002"
    ):
        resume_points(tmp_path, checkpoints["denoiser"])
    shutil.move(tmp_path / "decoder", tmp_path / "elsewhere")
    assert resume_points(tmp_path, checkpoints["denoiser"], ["denoiser"]) == {"denoiser": checkpoints["denoiser"]}
    with pytest.raises(ValueError, match="`resume_from_checkpoint` must be 'latest' or a checkpoint in a folder"):
        resume_points(tmp_path, tmp_path / "checkpoint-000002")
    with pytest.raises(ValueError, match="got ''[.]$"):
        resume_points(tmp_path, "")
    for point in (None, "latest"):  # a trained phase is not dropped silently
        with pytest.raises(
            ValueError, match="`max_train_steps` must not be 0, since `output_dir` holds .*denoiser/checkpoint"
        ):
            resume_points(tmp_path, point, ["decoder"])
    with pytest.raises(
        ValueError, match="`max_train_steps` must not be 0 with a checkpoint of this phase, .*denoiser"
    ):
        resume_points(tmp_path, checkpoints["denoiser"], ["decoder"])


def test_the_decoder_learns_from_the_posterior_s_mean():
    """As in stage 2 of the paper, the decoder ignores the sample's posterior noise."""
    pipeline = get_dummy_pipeline()
    image = torch.randint(0, 256, (1, 3, HEIGHT, WIDTH), generator=torch.Generator().manual_seed(0)).byte()
    latents = pipeline.vae.encode(to_pixel_values(image)).latent_dist.mean
    noise = torch.full_like(latents, 5.0)
    loss, _ = reconstruct(VAETrainer(pipeline.vae, kl_weight=0.0), {"target_image": image, "posterior_noise": noise})
    restored, target = pipeline.vae.decode(latents).sample, to_pixel_values(image)
    expected = 8 * (restored - target).square().mean() + (restored - target).abs().mean()
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)
