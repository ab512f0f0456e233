"""Stage 2: one subject from a few photos."""
