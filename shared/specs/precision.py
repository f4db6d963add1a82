"""The name of a job's precision. What it comes to on a device, ``shared.networks.precision`` knows."""

from typing import Literal

PrecisionName = Literal["auto", "float32", "bfloat16", "float16"]
