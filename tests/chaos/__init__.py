"""Real jobs on real processes while everything that can fail does. ``python -m tests.chaos --help``."""
