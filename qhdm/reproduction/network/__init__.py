"""The published network, with or without the deviations of its code."""
