"""Measurements of what this project claims; see ``benchmarks/README.md``. Run them as ``python -m benchmarks.NAME``."""
