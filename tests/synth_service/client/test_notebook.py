"""A job as HTML: what it says, and that what people write is text in it."""

from shared.broker import Broker
from shared.errors import UserError
from shared.jobs import Role
from shared.storage import Storage
from synth_service.client import Client
from synth_service.client.notebook import in_notebook
from tests.synth_service.api.conftest import claim, complete
from tests.synth_service.client.conftest import job


def test_a_job_shows_bars_and_its_picture(client: Client, broker: Broker, storage: Storage) -> None:
    made = client.jobs.create(job(name="<b>mine</b>"))
    complete(broker, storage)
    storage.put_bytes(b"picture", f"jobs/{made.id}/grid.png")
    html = made.refresh()._repr_html_()
    assert "&lt;b&gt;mine&lt;/b&gt;" in html
    assert f"{client.url}/ui/jobs/{made.id}" in html
    assert html.count("<progress") == 2
    assert "data:image/png;base64,cGljdHVyZQ==" in html
    assert "succeeded" in html


def test_a_job_without_a_picture_says_why_it_failed(client: Client, broker: Broker) -> None:
    made = client.jobs.create(job())
    broker.leases.fail(claim(broker, Role.SYNTHESIS), UserError("non_finite_loss", "it <diverged>"))
    html = made.refresh()._repr_html_()
    assert "non_finite_loss" in html
    assert "it &lt;diverged&gt;" in html
    assert "<img" not in html


def test_this_is_no_notebook() -> None:
    assert not in_notebook()
