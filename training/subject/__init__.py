"""Stage 2: training on a few photos of one subject."""
