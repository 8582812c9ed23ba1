"""Processes forked from a server that imports qhdm only once."""

import multiprocessing

FORKED = multiprocessing.get_context("forkserver")
FORKED.set_forkserver_preload(
    ["qhdm.cli", "qhdm.training.loop", "qhdm.quantum.files.openqasm", "qhdm.pictures"]
)
