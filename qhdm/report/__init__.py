"""Charts, drawings of circuits, and HTML pages of runs and comparisons."""
