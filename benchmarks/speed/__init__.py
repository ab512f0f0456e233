"""What sampling, training and data cost."""
