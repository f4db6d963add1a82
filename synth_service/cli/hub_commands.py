"""Commands about the Hugging Face hub."""

from __future__ import annotations

import os
from typing import Annotated

import typer
from rich.markup import escape

from shared.extras import MissingExtra
from synth_service.cli.job_ids import find_job
from synth_service.cli.options import ApiKey, JobId, Json, Url
from synth_service.cli.outcomes import ExitCode, connected, fail, messages, output, print_json
from synth_service.client import HubError
from synth_service.client.connection import DEFAULT_URL


def push(
    job_id: JobId,
    repository: Annotated[str, typer.Argument(metavar="OWNER/NAME", help="The repository, made if it is missing.")],
    student: Annotated[
        bool, typer.Option("--student", help="The student, to a model repository, in place of the dataset.")
    ] = False,
    private: Annotated[bool, typer.Option("--private", help="Make a repository that only its owner sees.")] = False,
    revision: Annotated[
        str | None, typer.Option(help="Branch to push to, made if it is missing (default: main).")
    ] = None,
    message: Annotated[str | None, typer.Option(help="Message of the commit (default: what and of which job).")] = None,
    as_json: Json = False,
    url: Url = DEFAULT_URL,
    api_key: ApiKey = None,
) -> None:
    """Push what a job has made to the Hugging Face hub: its dataset, or with --student its student. Prints the URL.

    The token is that of HF_TOKEN or of `hf auth login`, and must have write access. All files go up in one commit;
    those of an earlier push are replaced. Needs the extra `hub`.
    """
    if not messages.is_terminal:
        os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")  # read when the package is imported
    try:
        with connected(url, api_key) as client:
            pushed = client.jobs.push_to_hub(
                find_job(client, job_id),
                repository,
                student=student,
                private=private,
                revision=revision,
                message=message,
                say=lambda text: messages.print(escape(text)),
            )
    except HubError as error:
        fail(str(error), ExitCode.USAGE if error.is_usage else ExitCode.FAILED)
    except MissingExtra as error:
        fail(str(error), ExitCode.USAGE)
    if as_json:
        print_json({"url": pushed.url, "commit": pushed.commit, "files": list(pushed.files)})
    else:
        output.print(pushed.url, markup=False)
