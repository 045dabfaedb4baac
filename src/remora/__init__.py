"""Remora runs unmodified PyTorch on accelerators across a network."""

__version__ = "0.1.0"
