"""Filters on Qiskit Aer: batched, by state vectors, shots, device noise or tensor networks."""
