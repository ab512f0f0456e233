"""Models to train, the training objective, LoRA, and conversion of the authors' checkpoints."""
