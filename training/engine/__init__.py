"""The training loop and the parts that every trainer shares."""
