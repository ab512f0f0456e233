import os

import pytest
import torch
from transformers import CLIPVisionModel

from tests.judge_exports import save_i3d, save_inception
from tests.tiny_components import get_dummy_components, get_dummy_image, get_dummy_pipeline
from training.metrics import frames as metrics
from training.metrics.baselines import to_tensor
from training.metrics.learned import LearnedMetrics, check_judges


@pytest.fixture(scope="module")
def pipe():
    return get_dummy_pipeline()


@pytest.fixture
def pair():
    return to_tensor([get_dummy_image(i) for i in (0, 1)]), to_tensor([get_dummy_image(i) for i in (0, 2)])


def test_identity_is_judged_by_the_pooled_features_of_the_model_s_encoder(pipe, pair):
    learned = LearnedMetrics(pipe)
    features = []
    for images in pair:
        side = pipe.image_encoder.config.image_size
        pixels = pipe.feature_extractor(
            [get_dummy_image(i) for i in ((0, 1) if images is pair[0] else (0, 2))],
            size={"height": side, "width": side}, do_center_crop=False, return_tensors="pt",
        )["pixel_values"]  # fmt: skip
        with torch.no_grad():
            features.append(pipe.image_encoder(pixels).pooler_output)
    distances = torch.cosine_similarity(*features).mul(-2).add(2).clamp(min=0).sqrt()
    assert distances[0] < 1e-3 < distances[1]
    assert learned.measure(*pair)["identity_distance"] == pytest.approx(distances.mean().item(), abs=1e-3)


def test_another_encoder_judges_if_one_is_named(pipe, pair, tmp_path):
    components = get_dummy_components(seed=1)
    torch.manual_seed(5)
    other = CLIPVisionModel(components["image_encoder"].config)
    other.save_pretrained(tmp_path / "encoder")
    components["feature_extractor"].save_pretrained(tmp_path / "encoder")
    learned = LearnedMetrics(pipe, identity_encoder=str(tmp_path / "encoder"))
    own = LearnedMetrics(pipe).measure(*pair)["identity_distance"]
    assert learned.notes["identity_distance"] == f"by {tmp_path / 'encoder'}"
    expected = LearnedMetrics(get_dummy_pipeline(image_encoder=other.eval())).measure(*pair)["identity_distance"]
    found = learned.measure(*pair)["identity_distance"]
    assert found == pytest.approx(expected, abs=1e-6) and abs(found - own) > 1e-3


def test_missing_metrics_are_left_out_with_the_reason(pipe, pair, monkeypatch):
    def refuse(**kwargs):
        raise ModuleNotFoundError("LPIPS metric requires that torchvision is installed.")

    monkeypatch.setattr("torchmetrics.image.lpip.LearnedPerceptualImagePatchSimilarity", refuse)
    learned = LearnedMetrics(pipe)
    assert set(learned.measure(*pair)) == {"identity_distance"}
    assert learned.picture_features(pair[0]) == learned.video_features(pair[0]) == {}
    assert "left out: LPIPS metric requires that torchvision" in learned.notes["lpips"]
    assert learned.notes["fid"] == "left out: needs the weights that `--inception` names"
    assert learned.notes["fvd_16f"] == "left out: needs the weights that `--i3d` names"


def test_lpips_is_that_of_torchmetrics_on_pictures_within_0_and_1(pipe, pair, monkeypatch):
    """A stand-in has torchmetrics' interface, since AlexNet's weights need a download."""

    class Lpips(torch.nn.Module):
        def __init__(self, net_type, normalize):
            super().__init__()
            assert net_type == "alex" and normalize and os.environ["TORCH_FORCE_WEIGHTS_ONLY_LOAD"] == "1"

        def reset(self):
            self.scores = []

        def update(self, prediction, truth):
            self.scores.append((prediction - truth).abs().mean(dim=(1, 2, 3)))

        def compute(self):
            return torch.cat(self.scores).mean()

    monkeypatch.setattr("torchmetrics.image.lpip.LearnedPerceptualImagePatchSimilarity", Lpips)
    learned = LearnedMetrics(pipe)
    learned.measure(pair[0], pair[0])  # earlier pictures do not count
    assert learned.measure(*pair)["lpips"] == pytest.approx(metrics.l1(*pair).mean().item())
    assert "TORCH_FORCE_WEIGHTS_ONLY_LOAD" not in os.environ


def test_inception_gets_levels_and_gives_its_features(pipe, pair, tmp_path):
    save_inception(tmp_path / "inception.pt")
    learned = LearnedMetrics(pipe, inception=tmp_path / "inception.pt")
    features = learned.picture_features(pair[0])["fid"]
    torch.testing.assert_close(features, pair[0].mul(255).mean(dim=(2, 3)))
    assert learned.notes["fid"] == "by inception.pt"


def test_i3d_gets_one_video_of_16_frames(pipe, tmp_path):
    save_i3d(tmp_path / "i3d.pt")
    learned = LearnedMetrics(pipe, i3d=tmp_path / "i3d.pt", num_consecutive=16)
    levels = torch.linspace(0, 1, 16)
    features = learned.video_features(levels.reshape(16, 1, 1, 1).expand(16, 3, 40, 32))["fvd_16f"]
    torch.testing.assert_close(features, levels[None] * 2 - 1, atol=1e-5, rtol=0)


def test_refusals(pipe, tmp_path):
    with pytest.raises(
        ValueError, match="`i3d` must come with clips of at least 17 .*'procedural', whose clips have 16"
    ):
        check_judges(None, tmp_path / "i3d.pt", 16, "procedural")
    with pytest.raises(ValueError, match="`i3d` must come with `num_consecutive` 16, got 6"):
        LearnedMetrics(pipe, i3d=tmp_path / "i3d.pt", num_consecutive=6)
    with pytest.raises(ValueError, match="`inception` must be a TorchScript file, got .*missing.pt', which does not"):
        LearnedMetrics(pipe, inception=tmp_path / "missing.pt")
    (tmp_path / "text.pt").write_text("no module")
    with pytest.raises(ValueError, match="`inception` must be a TorchScript file, got .*text.pt': "):
        LearnedMetrics(pipe, inception=tmp_path / "text.pt")
    with pytest.raises(ValueError, match="`identity_encoder` must be a CLIP image encoder's folder or Hub id, got"):
        LearnedMetrics(pipe, identity_encoder=str(tmp_path))
