"""An INT8 network from a teacher and synthetic images: ONNX Runtime's static quantization, calibrated without data.

    python examples/quantize/quantize.py job.yaml --images JOB_FOLDER --output int8.onnx --evaluate held-out.tar

Static quantization has to know how large a network's activations become, and asks for a few hundred images that look
like those it was trained on. Where these are lost, a job with ``preset: calibration`` makes them. The network that is
written takes normalized images (N, channels, height, width) and returns logits, like the one that it was made from.
"""

from __future__ import annotations

import argparse
import logging
import tempfile
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import torch
import yaml
from numpy.typing import NDArray
from onnxruntime.quantization import CalibrationDataReader, quantize_static
from onnxruntime.quantization.shape_inference import quant_pre_process
from torch import nn

from shared.networks.building import build_network
from shared.networks.weights import load_checkpoint
from shared.shards.reader import iter_samples
from shared.specs import InputSpec, TeacherSpec

Images = NDArray[np.float32]
BATCH = 32


def normalized_batches(
    images: Path, input: InputSpec, *, most: int | None = None, batch_size: int = BATCH
) -> Iterator[tuple[Images, NDArray[np.int64]]]:
    """Images (N, C, H, W) as the network takes them, with their labels, -1 where there is none.

    Args:
        images: a tar, or a job's folder.
        input: shape and normalization.
        most: images in all.
        batch_size: images in a batch.
    """
    tars = [images] if images.is_file() else sorted((images / "shards").glob("*.tar")) or sorted(images.glob("*.tar"))
    if not tars:
        raise SystemExit(f"{images}: neither a tar nor a job's folder with shards/*.tar")
    mean, std = (np.array(values, np.float32).reshape(-1, 1, 1) for values in (input.mean, input.std))
    left = most
    for pixels, labels in iter_samples(tars, input.shape, batch_size=batch_size):
        batch = (pixels.astype(np.float32) / 255 - mean) / std
        yield batch[:left], labels[:left]
        if left is not None:
            left -= len(pixels)
            if left <= 0:
                return


class CalibrationImages(CalibrationDataReader):  # type: ignore[misc]
    """Hands batches to ONNX Runtime, under the name of the network's input."""

    def __init__(self, batches: Iterator[Images]) -> None:
        self._batches = batches

    def get_next(self) -> dict[str, Images] | None:
        """The next batch; None at the end."""
        batch = next(self._batches, None)
        return None if batch is None else {"images": batch}


def export(network: nn.Module, input: InputSpec, path: Path) -> None:
    """Write a network in eval mode as ONNX; the number of images is free."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        program = torch.onnx.export(
            network.eval(),
            (torch.zeros(2, *input.shape),),
            dynamo=True,
            dynamic_shapes=({0: torch.export.Dim("batch")},),
            input_names=["images"],
            output_names=["logits"],
            verbose=False,
        )
    assert program is not None
    program.save(str(path))


def quantize(network: Path, batches: Iterator[Images], output: Path) -> None:
    """Write the INT8 form of an ONNX file: weights by channel, activations by the range seen in the batches."""
    with tempfile.TemporaryDirectory() as folder:
        prepared = Path(folder) / "prepared.onnx"
        quant_pre_process(network, prepared)  # folds BatchNorm into the convolutions, among others
        logging.getLogger().setLevel(logging.ERROR)
        quantize_static(prepared, output, CalibrationImages(batches), per_channel=True)


def top1(network: Path, images: Path, input: InputSpec, *, most: int | None = None) -> float:
    """Share of the labelled images whose class an ONNX file finds."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(network, options, providers=["CPUExecutionProvider"])
    hits: list[NDArray[np.bool_]] = []
    for batch, labels in normalized_batches(images, input, most=most):
        (logits,) = session.run(None, {"images": batch})
        hits.append(logits.argmax(1) == labels)
    return float(np.concatenate(hits).mean())


def build_teacher(job: dict[str, Any], folder: Path) -> tuple[nn.Module, InputSpec]:
    """The teacher of a job file, with its weights."""
    spec = TeacherSpec.model_validate(job["teacher"])
    network = build_network(spec, num_classes=spec.num_classes, input=spec.input)
    load_checkpoint(network, folder / spec.checkpoint, field="teacher.checkpoint")
    return network.eval(), spec.input


def main(arguments: Sequence[str] | None = None) -> None:
    """Exports, quantizes and, where there are labelled images, measures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("job", type=Path, help="the job file that names the teacher")
    parser.add_argument("--storage", type=Path, default=Path(), help="folder that the teacher's path begins at")
    parser.add_argument("--images", type=Path, required=True, help="for calibration: a job's folder, or a tar")
    parser.add_argument("--count", type=int, default=256, help="images to calibrate with (default 256)")
    parser.add_argument("--output", type=Path, required=True, help="where to write the INT8 network")
    parser.add_argument("--evaluate", type=Path, help="labelled images to measure both networks on")
    options = parser.parse_args(arguments)
    network, input = build_teacher(yaml.safe_load(options.job.read_text(encoding="utf-8")), options.storage)
    with tempfile.TemporaryDirectory() as folder:
        exact = Path(folder) / "float32.onnx"
        export(network, input, exact)
        batches = (batch for batch, _ in normalized_batches(options.images, input, most=options.count))
        quantize(exact, batches, options.output)
        before, after = exact.stat().st_size, options.output.stat().st_size
        print(f"{options.output}: {after:,} bytes, float32 {before:,}")
        if options.evaluate is not None:
            print(f"top-1 float32 {top1(exact, options.evaluate, input):.4f}")
            print(f"top-1 int8    {top1(options.output, options.evaluate, input):.4f}")


if __name__ == "__main__":
    main()
