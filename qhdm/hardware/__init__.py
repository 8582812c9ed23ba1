"""Sampling with quantum filters on IBM backends: a chain of jobs that survives, and its cost."""
