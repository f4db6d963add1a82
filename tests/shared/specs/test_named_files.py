"""Which files a job names."""

from shared.specs import JobSpec
from shared.specs.named_files import named_checkpoints, named_shards

NETWORK = {"arch": "resnet8", "num_classes": 10, "checkpoint": "teacher.pt"}


def test_every_file_is_found_under_its_field() -> None:
    spec = JobSpec.model_validate(
        {
            "teacher": NETWORK,
            "student": {"arch": "resnet8", "checkpoint": "start.pt"},
            "shards": "made/{0..3}.tar",
            "distillation": {"steps": 10},
            "evaluation": {"shards": "held-out.tar"},
        }
    )
    assert dict(named_checkpoints(spec)) == {"teacher.checkpoint": "teacher.pt", "student.checkpoint": "start.pt"}
    assert dict(named_shards(spec)) == {"shards": "made/{0..3}.tar", "evaluation.shards": "held-out.tar"}


def test_initial_shards_are_named_too() -> None:
    fields = {"teacher": NETWORK, "student": {"arch": "resnet8"}, "initial_shards": "made/*.tar"}
    assert dict(named_shards(JobSpec.model_validate(fields))) == {"initial_shards": "made/*.tar"}


def test_what_a_job_leaves_out_is_not_listed() -> None:
    spec = JobSpec.model_validate({"teacher": NETWORK, "student": {"arch": "resnet8"}})
    assert dict(named_checkpoints(spec)) == {"teacher.checkpoint": "teacher.pt"}
    assert dict(named_shards(spec)) == {}
