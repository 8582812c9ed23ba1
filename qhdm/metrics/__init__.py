"""Evaluation: how good generated images are, against real ones.

Features of images, distances as pure functions of features, what classifiers say, and the records
that all of it is written to (docs/evaluation.md).
"""
