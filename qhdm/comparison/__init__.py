"""Comparisons: a grid of variants and seeds, trained, evaluated and tested for differences."""
