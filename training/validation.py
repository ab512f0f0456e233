# Copyright 2026 The DreamPose for diffusers authors
# Licensed under the Apache License, Version 2.0
"""Validation while stage 1 trains: fixed held-out pairs, sampled by the pipeline itself."""

import torch

from training.data.frame_pairs import FramePairs
from training.metrics import l1, psnr, ssim


class HeldOutPairs:
    """Samples fixed held-out frames and compares them with the truth; called by `training.loop.train`.

    The pairs, their noise and the order never change in a run, so that its figures can be compared with each other.

    Args:
        pipeline (`DreamPosePipeline`): Shares its parts with the module that trains.
        samples (`FramePairs`): Of the validation split.
        seed (`int`): Of the choice of pairs and the noise.
        num_pairs (`int`, *optional*, defaults to 16): How many frames, each of another clip as far as there are.
        num_inference_steps (`int`, *optional*, defaults to 10): Denoising steps.
    """

    def __init__(self, pipeline, samples: FramePairs, seed: int, num_pairs: int = 16, num_inference_steps: int = 10):
        self.pipeline, self.seed, self.num_inference_steps = pipeline, seed, num_inference_steps
        dataset, self.clips = samples.dataset, []
        for k, rows in zip(range(num_pairs), samples.videos.values()):
            target = (5 * k + 3) % len(rows)
            poses = [dataset[row]["iuv"] for row in rows]
            self.clips.append((dataset[rows[0]]["image"], poses, target, samples.read_pixel_values(rows[target])))

    @torch.no_grad()
    def __call__(self, module, global_step: int) -> dict[str, float]:
        """Mean L1, PSNR and SSIM over the pairs."""
        self.pipeline.set_progress_bar_config(disable=True)
        frames = [
            self.pipeline(
                photo,
                poses,
                frame_indices=[target],
                num_inference_steps=self.num_inference_steps,
                generator=torch.Generator().manual_seed(self.seed),
                output_type="pt",
            ).frames[0]
            for photo, poses, target, _ in self.clips
        ]
        prediction = torch.cat(frames)
        truth = torch.stack([pixel_values for *_, pixel_values in self.clips]) / 2 + 0.5
        return {
            name: metric(prediction, truth).mean().item()
            for name, metric in (("l1", l1), ("psnr", psnr), ("ssim", ssim))
        }
