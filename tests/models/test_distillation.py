"""Distillation: the grid, the guided teacher, the target, and a student whose consistency function is known."""

import math
from types import SimpleNamespace

import pytest
import torch
from accelerate import Accelerator
from diffusers import DDPMScheduler, LCMScheduler
from torch import nn

from pipeline_dreampose import teacher_digest
from tests.models.test_denoiser import make_batch
from tests.tiny_components import HEIGHT, WIDTH, get_dummy_pipeline
from training.data.frame_pairs import LatentShape
from training.models.denoiser import Denoiser
from training.models.distillation import (
    ConsistencyLoss,
    Teacher,
    check_pose_radius,
    check_steps,
    ddim_grid,
    draw_points,
    few_step_lora_configs,
    few_step_settings,
    set_few_steps,
)
from training.models.lora import made_trainable
from training.models.objective import diffusion_target, pseudo_huber_loss, to_sample_and_noise


SCHEDULES = {
    name: DDPMScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", prediction_type=name, clip_sample=False
    )
    for name in ("epsilon", "v_prediction")
}


@pytest.fixture
def pipeline():
    pipeline = get_dummy_pipeline()
    pipeline.image_encoder.requires_grad_(False)
    return pipeline


def shape_of(pipeline):
    return LatentShape.of(pipeline.vae, HEIGHT, WIDTH)


@pytest.mark.parametrize("number", [2, 20, 50])
def test_the_grid_is_that_of_the_sampler(number):
    scheduler = LCMScheduler(original_inference_steps=number)
    scheduler.set_timesteps(number)
    assert ddim_grid(1000, number).tolist() == scheduler.timesteps.tolist()[::-1]


@pytest.mark.parametrize("number", [0, 1, 3, 30])
def test_a_grid_that_does_not_divide_the_timesteps_is_refused(number):
    with pytest.raises(ValueError, match=f"`num_ddim_timesteps` must be at least 2 and divide the 1000.*got {number}"):
        ddim_grid(1000, number)


def test_the_last_point_has_its_share_and_the_others_are_equal():
    draw = (torch.arange(10_000) + 0.5) / 10_000
    counts = torch.bincount(draw_points(draw, 5, 0.2), minlength=5) / len(draw)
    assert counts.tolist() == pytest.approx([0.2] * 4 + [0.2], abs=1e-3)
    counts = torch.bincount(draw_points(draw, 5, 0.6), minlength=5) / len(draw)
    assert counts.tolist() == pytest.approx([0.1] * 4 + [0.6], abs=1e-3)


@pytest.mark.parametrize("prediction_type", SCHEDULES)
def test_sample_and_noise_are_those_of_the_target(prediction_type):
    scheduler, generator = SCHEDULES[prediction_type], torch.Generator().manual_seed(0)
    latents, noise = torch.randn(2, 3, 4, 2, 2, generator=generator)
    timesteps = torch.tensor([10, 500, 999])
    noisy = scheduler.add_noise(latents, noise, timesteps)
    prediction = diffusion_target(scheduler, latents, noise, timesteps)
    torch.testing.assert_close(
        to_sample_and_noise(scheduler, prediction, noisy, timesteps), (latents, noise), atol=1e-4, rtol=1e-4
    )


def test_the_pseudo_huber_loss_is_quadratic_near_zero_and_linear_far_away():
    zero = torch.zeros(1)
    assert pseudo_huber_loss(torch.tensor([1e-3]), zero, 1.0).item() == pytest.approx(0.5e-6, rel=0.1)
    assert pseudo_huber_loss(torch.tensor([5.0]), zero, 1e-3).item() == pytest.approx(5.0 - 1e-3, rel=1e-5)
    assert pseudo_huber_loss(torch.tensor([3.0]), zero, 4.0).item() == pytest.approx(1.0)  # 5 - 4


class GaussianTeacher:
    """The exact denoiser of latents with a normal distribution of a given standard deviation."""

    def __init__(self, scheduler, deviation):
        self.noise_scheduler, self.deviation, self.guidance_stop = scheduler, deviation, 1.0

    def gain(self, timesteps):
        """Return E[clean | noisy] / noisy."""
        squares = self.noise_scheduler.alphas_cumprod[timesteps]
        variance = self.deviation**2
        return squares.sqrt() * variance / (squares * variance + 1 - squares)

    def predict(self, module, noisy_latents, timesteps, *conditions):
        return as_noise(self.noise_scheduler, self.gain(timesteps), noisy_latents, timesteps)


def as_noise(scheduler, gain, noisy_latents, timesteps):
    """Return the noise that the clean latents `gain * noisy_latents` mean."""
    squares = scheduler.alphas_cumprod[timesteps]
    return ((1 - squares.sqrt() * gain) / (1 - squares).sqrt())[:, None, None, None] * noisy_latents


class GainStudent(nn.Module):
    """A student that multiplies the noisy latents by a number for each timestep."""

    def __init__(self, scheduler, grid):
        super().__init__()
        self.scheduler, self.grid = scheduler, grid
        self.gains = nn.Embedding(len(grid), 1)
        nn.init.constant_(self.gains.weight, 0.5)

    def forward(self, noisy_latents, timesteps, pose_window, image_latents, image_embeds):
        gain = self.gains(torch.searchsorted(self.grid, timesteps))[:, 0]
        return as_noise(self.scheduler, gain, noisy_latents, timesteps)


def test_a_student_learns_the_known_end_of_its_teacher_s_path(pipeline):
    """The path of DDIM is linear for normal latents, so its end is the noisy latents times a product of factors."""
    scheduler, deviation = SCHEDULES["epsilon"], 0.5
    teacher = GaussianTeacher(scheduler, deviation)
    loss_fn = ConsistencyLoss(pipeline, shape_of(pipeline), teacher, num_ddim_timesteps=5)
    grid = loss_fn.timesteps
    rates, gains = scheduler.alphas_cumprod[grid], teacher.gain(grid)
    expected = [gains[0].item()]
    for high in range(1, len(grid)):
        clean = gains[high]
        noise = (1 - rates[high].sqrt() * clean) / (1 - rates[high]).sqrt()
        factor = rates[high - 1].sqrt() * clean + (1 - rates[high - 1]).sqrt() * noise
        expected.append(expected[-1] * factor.item())
    assert expected[-1] > 2 * gains[-1]  # walking ends elsewhere than the first prediction

    student = GainStudent(scheduler, grid)
    optimizer = torch.optim.Adam(student.parameters(), lr=0.03)
    curve = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.01, 400)
    generator = torch.Generator().manual_seed(0)
    for _ in range(400):
        cells = (3, 16, 4, 2, 2)
        posterior_noise, noise, photo = torch.randn(cells, generator=generator)
        batch = {
            "target_mean": torch.zeros(cells[1:]),
            "target_std": torch.full(cells[1:], deviation / pipeline.vae.config.scaling_factor),
            "posterior_noise": posterior_noise,
            "noise": noise,
            "image_latents": photo * deviation,
            "image_embeds": torch.zeros(16, 5, 16),
            "pose_window": torch.zeros(16, 10, 2, 2),
            "timestep_draw": torch.rand(16, generator=generator),
        }
        loss, _ = loss_fn(student, batch)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        curve.step()
    assert student.gains.weight[:, 0].tolist() == pytest.approx(expected, abs=0.01)


def test_the_target_of_the_guided_teacher_by_hand(pipeline):
    """Three branches with constant predictions: 1 without photo and pose, 2 with the photo, 5 with both."""
    scheduler, seen = SCHEDULES["epsilon"], []
    pipeline.scheduler = scheduler

    def module(noisy_latents, timesteps, pose_window, image_latents, image_embeds):
        sees_photo, sees_pose = bool((image_latents == 7).all()), bool(pose_window.any())
        seen.append((sees_photo, sees_pose))
        return torch.full_like(noisy_latents, {(False, False): 1.0, (True, False): 2.0, (True, True): 5.0}[seen[-1]])

    teacher = Teacher(Accelerator(cpu=True), pipeline, 2.0, 1.5)
    teacher.switched = []  # the module above has no LoRA
    loss_fn = ConsistencyLoss(pipeline, shape_of(pipeline), teacher, num_ddim_timesteps=2)
    cells = (2, 4, 16, 12)
    reference = {"image_latents": torch.full(cells, 7.0), "image_embeds": torch.zeros(2, 5, 16)}
    noisy, window = torch.full(cells, 3.0), torch.ones(2, 10, 16, 12)
    target = loss_fn.find_target(module, noisy, torch.tensor([0, 1]), window, reference)

    # (1 - s_I) e(0,0) + (s_I - s_p) e(c_I,0) + s_p e(c_I,c_p), as `DreamPosePipeline` combines them
    guided = (1 - 2.0) * 1 + (2.0 - 1.5) * 2 + 1.5 * 5
    assert seen == [(False, False), (True, False), (True, True), (True, True)]
    low, high = (scheduler.alphas_cumprod[t].item() for t in (499, 999))
    from_low = (3 - math.sqrt(1 - low) * guided) / math.sqrt(low)  # no lower point: the teacher's own prediction
    clean = (3 - math.sqrt(1 - high) * guided) / math.sqrt(high)
    stepped = math.sqrt(low) * clean + math.sqrt(1 - low) * guided
    from_high = (stepped - math.sqrt(1 - low) * 5) / math.sqrt(low)  # the student predicts 5 with both
    assert target[0].unique().tolist() == pytest.approx([from_low], rel=1e-4)
    assert target[1].unique().tolist() == pytest.approx([from_high], rel=1e-4)


def test_the_teacher_guides_where_its_pipeline_does(pipeline):
    """Of four steps with a stop at 0.75, the last one, from the lowest point of the grid, is not guided."""
    pipeline.scheduler = SCHEDULES["epsilon"]
    pipeline.register_to_config(default_guidance_stop=0.75)
    teacher = Teacher(Accelerator(cpu=True), pipeline, 2.0, 0.0)  # scale 0: guidance leaves photo and pose out
    teacher.switched = []
    loss_fn = ConsistencyLoss(pipeline, shape_of(pipeline), teacher, num_ddim_timesteps=4)
    seen, predict = [], teacher.predict
    teacher.predict = lambda *given: seen.append(given[-1].tolist()) or predict(*given)

    def module(noisy_latents, timesteps, pose_window, image_latents, image_embeds):
        return torch.full_like(noisy_latents, 5.0 if bool(pose_window.any()) else 1.0)

    cells = (4, 4, 16, 12)
    reference = {"image_latents": torch.full(cells, 7.0), "image_embeds": torch.zeros(4, 5, 16)}
    noisy, window = torch.full(cells, 3.0), torch.ones(4, 10, 16, 12)
    target = loss_fn.find_target(module, noisy, torch.tensor([0, 1, 2, 3]), window, reference)
    assert seen == [[False, True, True, True]]
    low = SCHEDULES["epsilon"].alphas_cumprod[249].item()
    expected = (3 - math.sqrt(1 - low) * 5) / math.sqrt(low)  # 5 with photo and pose, not 1 as guidance of 0 would
    assert target[0].unique().tolist() == pytest.approx([expected], rel=1e-4)


def test_sampling_starts_from_the_photo_so_the_last_timestep_does_too(pipeline):
    seen = {}

    def module(noisy_latents, timesteps, pose_window, image_latents, image_embeds):
        seen["noisy"], seen["timesteps"] = noisy_latents, timesteps
        return torch.zeros_like(noisy_latents)

    teacher = SimpleNamespace(
        noise_scheduler=SCHEDULES["epsilon"], guidance_stop=1.0, predict=lambda module, noisy, *_: 0 * noisy
    )
    loss_fn = ConsistencyLoss(pipeline, shape_of(pipeline), teacher, 4, last_timestep_prob=0.5)
    batch = loss_fn.encode_batch(make_batch(shape_of(pipeline), 2))
    batch["timestep_draw"] = torch.tensor([0.1, 0.99])
    loss_fn(module, batch)
    target = (
        batch["target_mean"] + batch["target_std"] * batch["posterior_noise"]
    ) * pipeline.vae.config.scaling_factor
    clean = torch.stack([batch["image_latents"][0], target[1]])
    assert seen["timesteps"].tolist() == [999, 749]
    expected = SCHEDULES["epsilon"].add_noise(clean, batch["noise"], seen["timesteps"])
    torch.testing.assert_close(seen["noisy"], expected)


@pytest.mark.parametrize("is_lora", [True, False])
def test_gradients_reach_the_student_alone_and_the_teacher_stays(pipeline, is_lora):
    parts = {"unet": pipeline.unet, "adapter": pipeline.adapter}
    module = Denoiser(**parts)
    teacher = Teacher(Accelerator(cpu=True), pipeline, is_lora=is_lora)
    assert teacher.scales == {"image_guidance_scale": 2.0, "pose_guidance_scale": 1.5}
    assert teacher.num_forwards == 2 * 3
    pipeline.register_to_config(default_guidance_stop=0.5)
    assert Teacher(Accelerator(cpu=True), pipeline).num_forwards == 3 + 1, "the last step is not guided"
    configs = few_step_lora_configs(2) if is_lora else None
    with made_trainable(pipeline, parts, configs, torch.float32, 0):
        loss_fn = ConsistencyLoss(pipeline, shape_of(pipeline), teacher)
        batch = loss_fn.encode_batch(make_batch(shape_of(pipeline)))
        reference = {name: batch[name] for name in ("image_latents", "image_embeds")}
        inputs = (batch["noise"], torch.full((4,), 999), batch["pose_window"], reference, loss_fn.null_reference)
        inputs += (torch.ones(4, dtype=torch.bool),)
        before = teacher.predict(module, *inputs)
        trainable = [value for value in module.parameters() if value.requires_grad]
        optimizer = torch.optim.SGD(trainable, lr=10.0 if is_lora else 0.01)
        for _ in range(3):
            loss_fn(module, batch)[0].backward()
            with_gradient = {name for name, value in module.named_parameters() if value.grad is not None}
            optimizer.step()
        trained = {name for name, value in module.named_parameters() if value.requires_grad}
        assert with_gradient == trained and all(("lora" in name) == is_lora for name in trained)
        assert {name.split(".")[0] for name in trained} == {"unet", "adapter"}
        torch.testing.assert_close(teacher.predict(module, *inputs), before)
        student = module(*inputs[:3], **reference)
        alone = Teacher(Accelerator(cpu=True), pipeline, 1.0, 1.0)
        alone.switched, alone.copy = teacher.switched, teacher.copy
        assert (student - alone.predict(module, *inputs)).abs().max() > 1e-4


def test_the_teacher_predicts_what_the_pipeline_does(pipeline):
    batch = make_batch(shape_of(pipeline), 2)
    with made_trainable(pipeline, {"unet": pipeline.unet}, few_step_lora_configs(2), torch.float32, 0):
        teacher = Teacher(Accelerator(cpu=True), pipeline)
        teacher.switched = [pipeline.unet]
        loss_fn = ConsistencyLoss(pipeline, shape_of(pipeline), teacher)
        batch = loss_fn.encode_batch(batch)
        photo = {name: batch[name][:1].expand_as(batch[name]) for name in ("image_latents", "image_embeds")}
        inputs = (batch["noise"], torch.full((2,), 999), batch["pose_window"], photo, loss_fn.null_reference)
        inputs += (torch.tensor([True, True]),)
        predicted = teacher.predict(Denoiser(pipeline.unet, pipeline.adapter), *inputs)
    with torch.no_grad():
        states = pipeline.adapter(photo["image_embeds"][:1], photo["image_latents"][:1])
        nulls = pipeline.adapter(loss_fn.null_reference["image_embeds"], loss_fn.null_reference["image_latents"])
        pipeline.scheduler.set_timesteps(2)
        t = torch.tensor(999)
        branches = pipeline.guidance_branches(2.0, 1.5)
        expected = sum(
            weight
            * pipeline.unet(
                torch.cat([batch["noise"], batch["pose_window"] * sees_pose], 1),
                t,
                (states if sees_photo else nulls).expand(2, -1, -1),
            ).sample
            for weight, sees_photo, sees_pose in branches
        )
    torch.testing.assert_close(predicted, expected, atol=1e-5, rtol=1e-5)


def test_the_student_is_sampled_as_its_settings_say(pipeline):
    settings = few_step_settings(pipeline, 20, 2)
    assert settings["teacher"] == teacher_digest(pipeline.unet)
    alphas = pipeline.scheduler.alphas_cumprod
    set_few_steps(pipeline, settings)
    assert type(pipeline.scheduler) is LCMScheduler and torch.equal(pipeline.scheduler.alphas_cumprod, alphas)
    pipeline.scheduler.set_timesteps(2)
    assert pipeline.scheduler.timesteps.tolist() == [999, 499]
    names = ("num_inference_steps", "image_guidance_scale", "pose_guidance_scale")
    assert [pipeline.config[f"default_{name}"] for name in names] == [2, 1.0, 1.0]


def test_more_steps_than_timesteps_and_another_pose_window_are_refused(pipeline):
    check_steps(20, 20)
    with pytest.raises(ValueError, match="`num_inference_steps` must be at most `num_ddim_timesteps`, 20, got 21"):
        check_steps(21, 20)
    with pytest.raises(ValueError, match="`pose_radius` must be the model's own, 2, got 1"):
        check_pose_radius(pipeline, 1)
