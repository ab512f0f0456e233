"""DensePose output to IUV pictures. The pose window's size is `pose_radius` in `training/options/stage_one.py`."""
