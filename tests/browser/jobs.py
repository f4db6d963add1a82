"""Jobs for the browser tests: the digits example, cut down to seconds."""

from typing import Any

from tests.e2e.conftest import digits_fields


def small_digits(name: str, *, images: int = 128, steps: int = 20) -> dict[str, Any]:
    """The digits job as a client writes it; of 64 images a batch."""
    job = digits_fields() | {"name": name}
    job["synthesis"] |= {"num_images": images}
    job["distillation"] |= {"steps": steps, "warmup_batches": 0}
    job["evaluation"] |= {"every_steps": 10}
    return job
