"""DensePose and pose files. The pose window's size is `pose_radius` in `training/options/stage_one.py`."""
