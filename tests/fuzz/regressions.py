"""Inputs that the coverage-guided fuzzer found, by target: each made something fail that is mended since.

Written in base64 with a word on what went wrong; ``test_coverage`` runs them all.
"""

from typing import Final

REGRESSIONS: Final[dict[str, dict[str, str]]] = {"checkpoints": {}, "shards": {}, "patterns": {}, "specs": {}}
