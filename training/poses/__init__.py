"""DensePose output to IUV pictures and pose maps."""
