# Copyright 2026 The DreamPose for diffusers authors
# Licensed under the Apache License, Version 2.0
"""Train the embedded default's own VAE or image encoder from scratch: `python training/train_encoders.py --preset tiny_vae`."""
import os, sys
from dataclasses import dataclass, field
from pathlib import Path

import torch
from accelerate import Accelerator
from transformers import CLIPImageProcessor, HfArgumentParser

from training.data.encoder_frames import ImageEncoderFrames, VAEFrames
from training.data.procedural_fashion import load_procedural_fashion
from training.encoders import ImageEncoderTrainer, VAETrainer, build_image_encoder, build_vae, measure_latents, normalize_latents
from training.loop import train


@dataclass
class O:
    what: str = "vae"
    output_dir: str = "runs/tiny/vae"
    max_train_steps: int = 3600
    crop_steps: int = 1600
    train_batch_size: int = 8
    learning_rate: float = 2e-3
    lr_warmup_steps: int = 100
    seed: int = 0
    ema_decay: float = 0.998


def main(o):
    accelerator = Accelerator()
    torch.manual_seed(o.seed)
    data = load_procedural_fashion("tiny", "train")
    held = load_procedural_fashion("tiny", "validation")
    import numpy as np
    hv = torch.stack([torch.from_numpy(np.array(r["image"])).permute(2, 0, 1).float() / 127.5 - 1 for r in held.select(range(0, len(held), 4))])
    if o.what == "vae":
        m = VAETrainer(build_vae()).to(memory_format=torch.channels_last)
        ds = VAEFrames(data, 4, 4, o.seed, o.crop_steps * o.train_batch_size * accelerator.num_processes)
        def loss_fn(module, b):
            out = module(b["pixel_values"], b["noise"]); return out.pop("loss"), out
        def validate(module, step):
            p = module.vae.encode(hv).latent_dist.mean; y = module.vae.decode(p).sample.clamp(-1, 1)
            return {"psnr": (10 * torch.log10(4 / ((y - hv) ** 2).mean((1, 2, 3)))).mean().item()}
    else:
        fe = CLIPImageProcessor(size={"height": 64, "width": 64}, do_center_crop=False)
        m = ImageEncoderTrainer(build_image_encoder())
        ds = ImageEncoderFrames(data, fe, o.seed)
        def loss_fn(module, b):
            out = module(**b); return out.pop("loss"), out
        validate = None
    m = train(accelerator, m, loss_fn, ds, output_dir=o.output_dir, max_train_steps=o.max_train_steps, train_batch_size=o.train_batch_size,
              learning_rate=o.learning_rate, lr_warmup_steps=o.lr_warmup_steps, ema_decay=o.ema_decay, seed=o.seed, checkpointing_steps=400,
              resume_from_checkpoint="latest", logging_steps=50, validation_steps=400 if validate else None, validate=validate)
    if accelerator.is_main_process:
        if o.what == "vae":
            imgs = torch.stack([torch.from_numpy(np.array(data[i]["image"])).permute(2, 0, 1).float() / 127.5 - 1 for i in range(0, len(data), len(data) // 512)])
            mean, std = measure_latents(m.vae, imgs); print(mean, std)
            normalize_latents(m.vae, mean, std)
            m.vae.to(memory_format=torch.contiguous_format).save_pretrained(o.output_dir + "/vae")
        else:
            m.image_encoder.save_pretrained(o.output_dir + "/image_encoder"); fe.save_pretrained(o.output_dir + "/feature_extractor")


if __name__ == "__main__":
    main(HfArgumentParser(O).parse_args_into_dataclasses()[0])
