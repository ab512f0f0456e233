# Copyright 2026 The DreamPose for diffusers authors
# Licensed under the Apache License, Version 2.0
"""Options of the pictures that end a run of stage 2."""

from dataclasses import dataclass, field


@dataclass(frozen=True)
class SubjectSampleOptions:
    """Stage 2: the photos' poses, sampled without the subject and with it, in `OUTPUT/before_after.png`."""

    sample_inference_steps: int = field(
        default=10, metadata={"help": "Denoising steps of these pictures; 0 draws none."}
    )
    hub_sample: bool = field(
        default=False,
        metadata={"help": "Show them on the card and push them too: who is on them agreed. They stay here otherwise."},
    )

    def __post_init__(self):
        if self.sample_inference_steps < 0:
            raise ValueError(f"`sample_inference_steps` must be at least 0, got {self.sample_inference_steps}.")
        if self.hub_sample and self.sample_inference_steps == 0:
            raise ValueError("`hub_sample` must go with `sample_inference_steps` above 0, got True with 0.")
