"""Devices: their calibration, and the noise models that follow from it."""
