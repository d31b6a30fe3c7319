"""The main job: the outer loop, its inner runs, the points that they measure and their checkpoints."""
