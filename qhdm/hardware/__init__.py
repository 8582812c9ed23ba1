"""Devices: IBM backends, and the fake ones that stand for them."""
