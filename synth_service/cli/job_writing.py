"""`dfkd init`: a job file for somebody's own network, with comments; written only if the job is valid.

What goes into it is found out by ``synth_service.cli.teacher_questions``.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from shared.tasks.descriptions import CLASSIFICATION
from synth_service.cli.job_file import RefusedJob, check_job, load_job_file
from synth_service.cli.model_folders import find_teacher
from synth_service.cli.outcomes import ExitCode, fail
from synth_service.cli.running import read_settings
from synth_service.cli.teacher_questions import LARGE_IMAGE, Answers, Teacher, describe_teacher, tell_guesses


def write_job_file(checkpoint: Path, to: Path, given: Answers, *, ask: bool, force: bool) -> dict[str, Any]:
    """Writes the job file and returns the job in it; ends the command if that cannot be.

    Args:
        checkpoint: the teacher's weights, their folder, or their name on the hub.
        to: the job file.
        given: answers that are known.
        ask: ask for the others; if not, they are guessed, and the guesses are told.
        force: overwrite.
    """
    if to.exists() and not force:
        fail(f"{to} is there already; overwrite it with --force, or write another with --to", ExitCode.USAGE)
    files = find_teacher(checkpoint)
    teacher = describe_teacher(files.weights, given, ask=ask, beside=files.described)
    tell_guesses(teacher)
    to.parent.mkdir(parents=True, exist_ok=True)
    to.write_text(_text(teacher, given.name or files.name, _storage_path(files.weights)), encoding="utf-8")
    spec = load_job_file(str(to))
    try:
        check_job(spec)
    except RefusedJob as error:
        to.unlink()
        fail(str(error), ExitCode.USAGE)
    return spec


def matches_attention(teacher: Teacher) -> bool:
    """Whether it is inverted by how its patches resemble each other, since it has no BatchNorm statistics."""
    return teacher.is_transformer and not teacher.has_batch_norm


def preset_for(teacher: Teacher) -> str:
    """The settings for such a network, and for images of this size."""
    if matches_attention(teacher):
        return "psaq-vit"
    return "fast-50-imagenet" if teacher.height >= LARGE_IMAGE else "fast-5"


def _storage_path(checkpoint: Path) -> str:
    """Its path under the storage root; if it lies elsewhere, where it would have to be copied to."""
    root = read_settings().storage
    if "://" not in root:
        try:
            return checkpoint.absolute().relative_to(Path(root).expanduser().absolute()).as_posix()
        except ValueError:
            pass
    return f"models/{checkpoint.name}"


def _text(teacher: Teacher, name: str, checkpoint: str) -> str:
    """The job file. JSON is YAML."""
    guesses = "".join(
        f"  # The {what} is A GUESS ({option} of `dfkd init`): put in what the teacher was trained with.\n"
        for what, _, option in teacher.guesses
        if option != "--student"
    )
    bn = (
        ""
        if teacher.has_batch_norm or matches_attention(teacher)
        else "  # The teacher has no BatchNorm statistics to match; expect poorer images.\n"
    )
    presets = (
        "A vision transformer has no BatchNorm statistics: psaq-vit matches how its patches resemble each other."
        if matches_attention(teacher)
        else "fast-2, fast-5 or fast-10: more steps for each batch, better images. fast-50-imagenet is for large ones."
    )
    task = "" if teacher.task == CLASSIFICATION.name else f"  task: {teacher.task}\n"
    kwargs = f"  kwargs: {json.dumps(teacher.kwargs)}\n" if teacher.kwargs else ""
    input = ", ".join(f"{field}: {value}" for field, value in teacher.input_fields().items())
    return f"""\
# A job for `dfkd submit`; check it with `dfkd validate`. docs/job-file.md has every field.
name: {json.dumps(name)}
seed: 0

teacher:
{task}  arch: {json.dumps(teacher.arch)}
{kwargs}  # Under the storage root, so copy it there; or send it with `dfkd upload`, and write here what that prints.
  checkpoint: {json.dumps(checkpoint)}
  num_classes: {teacher.num_classes}
  # Size of the images, and the mean and standard deviation (of pixels in [0, 1]) that the teacher was trained with.
{guesses}  input: {{{input}}}

# The network to train. To make a dataset only, leave it out and write `distillation: null`.
student:
  arch: {json.dumps(teacher.student)}

synthesis:
  # {presets}
  preset: {preset_for(teacher)}
{bn}  # Images to make; a first try needs fewer.
  num_images: 56320
  # Workers that may share the making of images.
  partitions: 1

# Labelled images to measure the student on, never trained on: a WebDataset under the storage root.
# evaluation:
#   shards: held-out-{{000..003}}.tar
"""
