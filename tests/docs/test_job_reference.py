"""The written reference says what the specification says."""

from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path

DOCS = Path(__file__).parents[2] / "docs"


def test_the_job_file_page_is_up_to_date() -> None:
    spec = spec_from_file_location("job_reference", DOCS / "job_reference.py")
    assert spec is not None
    assert spec.loader is not None
    module = module_from_spec(spec)
    spec.loader.exec_module(module)

    assert (DOCS / "job-file.md").read_text() == module.render(), "run: python docs/job_reference.py"
