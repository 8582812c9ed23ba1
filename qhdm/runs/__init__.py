"""Run directories: what a training leaves behind, and what everything later reads."""
