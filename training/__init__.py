"""Training, fine-tuning and evaluation of DreamPose."""
