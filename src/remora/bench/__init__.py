"""Measurements: workloads, the harness, and the demo."""
