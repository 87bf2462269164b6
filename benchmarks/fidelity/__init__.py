"""Prediction beside measurement on this machine: `python -m benchmarks.fidelity`."""
