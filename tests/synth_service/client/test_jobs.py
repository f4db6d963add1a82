"""Jobs, models and workers over a real API process, blocking and in an event loop."""

from pathlib import Path
from typing import Any

import anyio
import pytest
import torch

from shared.api_keys import new_api_key
from shared.broker import Broker
from shared.errors import UserError
from shared.jobs import Role, State
from shared.networks.building import build_network
from shared.networks.weights import save_checkpoint
from shared.specs import JobSpec
from shared.storage import Storage
from synth_service.client import ApiError, AsyncClient, Client, Consumed, JobNotSucceeded, ServerUnreachable
from synth_service.client.progress import LineDisplay
from tests.conftest import free_port
from tests.shared.broker.manifests import manifest_of
from tests.synth_service.api.conftest import claim, complete
from tests.synth_service.api_process import serving
from tests.synth_service.client.conftest import CHECKPOINT, job


def test_a_job_from_start_to_cancellation(client: Client) -> None:
    first, second = client.jobs.create(job(name="one")), client.jobs.create(job(name="two"))
    assert client.jobs.get(first.id).name == "one"
    page = client.jobs.list(limit=1)
    assert [each.id for each in page.data] == [second.id]
    assert page.has_more
    assert [each.id for each in client.jobs.list(after=second.id).data] == [first.id]
    assert first.cancel().state is State.CANCELLED
    assert [each.id for each in client.jobs.list(status="cancelled").data] == [first.id]
    with pytest.raises(ApiError) as refusal:
        first.cancel()
    assert (refusal.value.status, refusal.value.code) == (409, "job_finished")
    assert first.retry().state is State.QUEUED
    first.cancel()
    first.delete()
    with pytest.raises(ApiError):
        first.refresh()


def test_all_jobs_are_iterated_page_by_page(client: Client) -> None:
    made = [client.jobs.create(job(name=f"{number}")).id for number in range(7)]
    assert [each.id for each in client.jobs.iterate(page_size=3)] == made[::-1]


def test_an_iteration_may_be_left(client: Client) -> None:
    for number in range(3):
        client.jobs.create(job(name=f"{number}"))
    jobs = client.jobs.iterate(page_size=1)
    assert next(jobs).name == "2"
    jobs.close()  # type: ignore[attr-defined]
    assert client.jobs.list(limit=1).data[0].name == "2"


def test_a_specification_may_be_an_object(client: Client) -> None:
    spec = JobSpec.model_validate(job(seed=3))
    assert client.jobs.create(spec).parsed_spec() == spec


def test_the_same_key_gives_the_same_job(client: Client) -> None:
    assert client.jobs.create(job(), idempotency_key="k").id == client.jobs.create(job(), idempotency_key="k").id


def test_validation_resolves_and_estimates(client: Client) -> None:
    validated = client.jobs.validate(job())
    assert validated.estimate.images == 8
    assert validated.spec["synthesis"]["preset"] == "fast-5"  # type: ignore[index, call-overload]
    assert list(client.jobs.iterate()) == []


def test_a_refusal_names_every_field(client: Client) -> None:
    wrong = job(teacher={"arch": "no-such-net", "num_classes": 1, "checkpoint": CHECKPOINT})
    for call in (client.jobs.create, client.jobs.validate):
        with pytest.raises(ApiError) as refusal:
            call(wrong)
        assert refusal.value.status == 422
        assert {each.field for each in refusal.value.errors} == {"teacher.arch", "teacher.num_classes"}


@pytest.mark.parametrize("job_id", ["job-0", "../workers", "a/b", "?", ""])
def test_an_unknown_job_is_an_error_whatever_its_id_looks_like(client: Client, job_id: str) -> None:
    with pytest.raises(ApiError) as refusal:
        client.jobs.get(job_id) if job_id else client.jobs.cancel(job_id)
    assert refusal.value.status in (404, 405, 422)


def test_an_unchanged_job_is_polled_without_its_body(client: Client, broker: Broker) -> None:
    job_id = client.jobs.create(job()).id
    first, second = client.jobs.poll(job_id), client.jobs.poll(job_id)
    assert second.job is first.job  # 304: what was there is used again
    assert first.retry_after_seconds == second.retry_after_seconds == 1.0
    claim(broker, Role.SYNTHESIS)
    assert client.jobs.poll(job_id).job.state is State.RUNNING


# -- waiting ----------------------------------------------------------------------------------------------


def test_waiting_ends_with_the_job(client: Client, broker: Broker, storage: Storage) -> None:
    created = client.jobs.create(job())
    complete(broker, storage)
    assert created.wait().ensure_succeeded().result == {"images": 8}


def test_a_job_that_failed_says_why(client: Client, broker: Broker) -> None:
    created = client.jobs.create(job())
    broker.leases.fail(claim(broker, Role.SYNTHESIS), UserError("no_such_thing", "there is none"))
    ended = created.wait()
    assert ended.state is State.FAILED
    with pytest.raises(JobNotSucceeded, match="no_such_thing: there is none"):
        ended.ensure_succeeded()


def test_waiting_has_a_limit_and_the_job_goes_on(client: Client) -> None:
    created = client.jobs.create(job())
    with pytest.raises(TimeoutError, match="it continues"):
        created.wait(timeout=0.05)
    assert created.refresh().state is State.QUEUED


def test_progress_is_shown(service: str, client: Client, broker: Broker, capsys: pytest.CaptureFixture[str]) -> None:
    created = client.jobs.create(job())
    created.cancel()
    created.wait(progress=True)
    assert f"{created.id} cancelled" in capsys.readouterr().err.replace("\n", " ")


# -- models, students, workers ----------------------------------------------------------------------------


def test_a_checkpoint_is_uploaded_used_and_removed(client: Client, tmp_path: Path) -> None:
    spec = JobSpec.model_validate(job())
    network = build_network(spec.teacher, num_classes=10, input=spec.teacher.input)
    save_checkpoint(network, tmp_path / "mine.safetensors", {})
    model = client.models.upload(tmp_path / "mine.safetensors")
    assert (model.filename, model.num_classes) == ("mine.safetensors", 10)
    assert "resnet20" in model.architectures
    assert [each.id for each in client.models.list()] == [model.id]
    teacher = {"arch": "resnet20", "num_classes": 10, "checkpoint": model.checkpoint}
    client.jobs.create(job(teacher=teacher)).cancel()
    client.models.delete(model.id)
    assert client.models.list() == []


def test_a_checkpoint_that_is_none_is_refused(client: Client, tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("no weights")
    with pytest.raises(ApiError) as refusal:
        client.models.upload(tmp_path / "notes.txt")
    assert refusal.value.code == "unreadable_checkpoint"


def test_the_student_comes_as_a_network(client: Client, broker: Broker, storage: Storage, tmp_path: Path) -> None:
    created = client.jobs.create(job())
    complete(broker, storage)
    spec = created.parsed_spec()
    assert spec.student is not None
    trained = build_network(spec.student, num_classes=10, input=spec.teacher.input).eval()
    save_checkpoint(trained, tmp_path / "student.safetensors", {})
    storage.put_file(tmp_path / "student.safetensors", f"jobs/{created.id}/student.safetensors")
    images = torch.rand(2, 3, 32, 32)
    student = created.student()
    assert not student.training
    assert torch.equal(student(images), trained(images))


def test_workers_are_listed(client: Client, broker: Broker) -> None:
    broker.workers.register("w", {"role": "synthesis", "at": 5.0, "device": "cpu"}, ttl_seconds=60)
    (worker,) = client.workers()
    assert (worker.name, worker.role, worker.at) == ("w", "synthesis", 5.0)
    assert worker.device == "cpu"
    client.check_ready()


# -- addresses --------------------------------------------------------------------------------------------


def test_nobody_there_is_unreachable() -> None:
    url = f"http://127.0.0.1:{free_port()}"
    with Client(url, sleep=lambda _: None) as client, pytest.raises(ServerUnreachable, match="no answer from"):
        client.jobs.get("job-0")


@pytest.mark.parametrize("url", ["localhost:8000", "ftp://host", "http://", "", "http://host:port"])
def test_a_wrong_address_is_said_before_anything_is_sent(url: str) -> None:
    with pytest.raises(ValueError, match="server address"):
        Client(url)


def test_address_and_key_come_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DFKD_URL", "http://example.test:1/")
    with Client() as client:
        assert client.url == "http://example.test:1"
    monkeypatch.setenv("DFKD_API_KEY", "two words")
    with pytest.raises(ValueError, match="API key"):
        Client()


def test_a_service_with_keys_is_used_with_one(redis_url: str, storage: Storage, tmp_path: Path) -> None:
    key, entry = new_api_key("ci")
    with serving(redis_url, storage.root, free_port(), DFKD_API_KEYS=entry) as url:
        with Client(url) as nobody, pytest.raises(ApiError) as refusal:
            nobody.jobs.create(job())
        assert (refusal.value.status, refusal.value.code) == (401, "api_key_missing")
        with Client(url, key) as client:
            created = client.jobs.create(job())
            assert created.owner == "ci"
            created.cancel()
            assert [event.type for event in created.events()][-1] == "job_cancelled"
            (tmp_path / "weights").write_bytes(b"none")
            with pytest.raises(ApiError, match="no checkpoint"):
                client.models.upload(tmp_path / "weights")


# -- in an event loop -------------------------------------------------------------------------------------


def test_the_asynchronous_client_does_the_same(
    service: str, client: Client, broker: Broker, storage: Storage, tmp_path: Path
) -> None:
    async def use() -> dict[str, Any]:
        async with AsyncClient(service) as asynchronous:
            created = await asynchronous.jobs.create(job())
            await anyio.to_thread.run_sync(complete, broker, storage)
            ended = await created.wait(progress=LineDisplay(_quiet()))
            return {
                "state": ended.state,
                "listed": [each.id async for each in asynchronous.jobs.iterate()],
                "events": [each.type async for each in ended.events()],
                "files": await ended.download_dataset(tmp_path / "dataset"),
                "workers": await asynchronous.workers(),
                "id": created.id,
            }

    seen = anyio.run(use)
    assert seen["state"] is State.SUCCEEDED
    assert seen["listed"] == [seen["id"]]
    assert seen["events"] == [each.type for each in client.jobs.events(seen["id"])]
    assert seen["events"][-1] == "job_succeeded"
    assert "index.json" in seen["files"]
    assert seen["workers"] == []


def _quiet() -> Any:
    from rich.console import Console

    return Console(quiet=True)


def test_what_is_used_up_is_told_in_an_event_loop_too(service: str, client: Client, broker: Broker) -> None:
    created = client.jobs.create(job(distillation="external", student=None))
    attempt = claim(broker, Role.SYNTHESIS)
    broker.shards.announce(attempt, manifest_of(attempt, 0), {})

    async def report() -> tuple[str, Consumed, str]:
        async with AsyncClient(service) as asynchronous:
            (shard,) = await asynchronous.jobs.shards(created.id)
            told = await asynchronous.jobs.report_consumed(created.id, shard.id)
            with pytest.raises(ApiError) as refusal:
                await asynchronous.jobs.report_consumed((await asynchronous.jobs.create(job())).id, shard.id)
            return shard.id, told, refusal.value.code

    until, told, code = anyio.run(report)
    assert (told.until, told.shards_consumed, code) == (until, 1, "not_external")
