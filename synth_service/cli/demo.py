"""`dfkd demo`: the digits example through the whole service, from an empty folder to a measured student.

Everything is what a user would do: the service is started as `dfkd up` starts it, the job goes in over
HTTP, and every number that is shown comes back in the job's record.
"""

from __future__ import annotations

import tempfile
import time
from pathlib import Path
from typing import Any, Final

from rich.markup import escape
from rich.table import Table

from shared.jobs import JobRecord, State
from shared.storage import Storage
from shared.tasks import TaskDescription, task_of
from synth_service.cli.job_file import load_job_file
from synth_service.cli.outcomes import ExitCode, fail, messages, output, print_json
from synth_service.cli.own_service import own_service
from synth_service.client.progress import display_for
from synth_service.digits_example import ExampleName, example_folder, put_inputs

REPORTED: Final = (
    "images",
    "synthesis_images_per_second",
    "kd_steps_per_second",
)
"""Fields of the job's result that the demo passes on as they are, besides the metrics of its task."""


def run_demo(*, storage: Path, seed: int | None, as_json: bool, name: ExampleName = "digits") -> None:
    """Runs an example and shows what came of it.

    Args:
        storage: folder for everything that is made; what earlier runs left there stays.
        seed: of the job; None leaves the one of its file.
        as_json: end with a line of JSON on stdout; everything else is on stderr then.
        name: of the example.
    """
    started_at = time.monotonic()
    example = example_folder(name)
    if example is None:
        fail(f"the {name} example is missing here: install the wheel, or run the demo from a checkout", ExitCode.USAGE)
    storage = storage.expanduser().absolute()
    spec = load_job_file(str(example / "job.yaml"), [] if seed is None else [f"seed={seed}"])
    try:
        put_inputs(spec, example, Storage(str(storage)))
        log = (storage / "demo.log").open("w", encoding="utf-8", buffering=1)
    except OSError as error:
        fail(f"{error.filename or storage}: {error.strerror or error}; choose another folder with --storage")
    # The server's data is of no use after the demo, and an interrupted one must not go on in the next.
    with (
        tempfile.TemporaryDirectory(prefix="dfkd-demo-") as redis_folder,
        log,
        own_service(
            storage=str(storage),
            redis_url=None,
            redis_folder=Path(redis_folder),
            port=0,
            log=log,
            when_interrupted="interrupted; everything is stopped",
        ) as client,
    ):
        job = client.jobs.create(spec)
        messages.print(f"submitted {job.id}: synthesis and distillation run at the same time")
        job = job.wait(progress=display_for(messages))
    if job.state is not State.SUCCEEDED:
        reason = f"{job.error.code}: {job.error.message}" if job.error else str(job.state)
        fail(f"the job did not succeed: {reason}; the log is {log.name}")
    outcome = summarize(job, Storage(str(storage)), seconds=time.monotonic() - started_at)
    (messages if as_json else output).print(outcome_table(outcome, task_of(job), name))
    if as_json:
        print_json(outcome)


def summarize(job: JobRecord, storage: Storage, *, seconds: float) -> dict[str, Any]:
    """What the demo prints as JSON, all of it from the job's record."""
    result = job.result or {}
    reported = [*(metric.name for metric in task_of(job).metrics), *REPORTED]
    missing = [name for name in (*reported, "student", "grid") if result.get(name) is None]
    if missing:
        fail(f"the job's result lacks {', '.join(missing)}")
    paths = {name: storage.local_path(str(result[name])) for name in ("student", "grid")}
    for path in paths.values():
        if path is None or not path.is_file():
            fail(f"the job names a file that is not there: {path}")
    return {
        "job": job.id,
        "seed": job.spec["seed"],
        **{name: result[name] for name in reported},
        "kd_steps": result.get("kd_steps"),
        "seconds": round(seconds, 1),
        "student_path": str(paths["student"]),
        "grid_path": str(paths["grid"]),
    }


def outcome_table(outcome: dict[str, Any], task: TaskDescription, name: ExampleName = "digits") -> Table:
    """The outcome for people."""
    teacher, student = task.teacher_metric.name, task.headline_metric.name
    table = Table(show_header=False, title=f"{name}, distilled without a digit", title_justify="left")
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for label, text in (
        (f"teacher {task.headline}, held-out {name}", f"{outcome[teacher]:.4f}"),
        (f"student {task.headline}, held-out {name}", f"[bold green]{outcome[student]:.4f}[/]"),
        ("agreement", f"{outcome['agreement']:.4f}"),
        ("images made", f"{outcome['images']:,}"),
        ("synthesis", f"{outcome['synthesis_images_per_second']:,.1f} images/s"),
        ("distillation", f"{outcome['kd_steps_per_second']:,.1f} steps/s"),
        ("seconds in all", f"{outcome['seconds']:.1f}"),
        ("student", escape(outcome["student_path"])),
        ("picture grid", escape(outcome["grid_path"])),
    ):
        table.add_row(label, text)
    return table
