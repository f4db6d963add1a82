"""The new-job form: what one types is checked at once, and what is submitted is what stands there."""

from __future__ import annotations

import re

import pytest
import yaml
from playwright.sync_api import Locator, Page, expect

from shared.specs import JobSpec
from tests.browser.conftest import OpenPage
from tests.browser.jobs import small_digits
from tests.e2e.service import DIGITS, Service

INCOMPLETE = [("/jobs:validate", "422")]
"""A form that is not filled in yet is refused, which browsers log."""


@pytest.fixture
def form(open_page: OpenPage, service: Service) -> Page:
    return open_page(service, "/ui/new", expected=INCOMPLETE)


def field(page: Page, path: str) -> Locator:
    return page.locator(f'[name="{path}"]')


def error_of(page: Page, path: str) -> Locator:
    return page.locator(f"#{field(page, path).get_attribute('id')}-error")


def test_errors_show_at_their_fields_while_typing(form: Page) -> None:
    expect(form.locator("#form-state")).to_have_text("Fill in the fields marked *.")
    field(form, "name").fill("mine")
    expect(form.locator("#form-state")).to_have_text("4 more fields are needed.")
    expect(form.locator("[aria-invalid=true]")).to_have_count(0)
    field(form, "teacher.num_classes").fill("1")
    expect(error_of(form, "teacher.num_classes")).to_contain_text("must be at least 2")
    expect(field(form, "teacher.num_classes")).to_have_attribute("aria-invalid", "true")
    field(form, "teacher.num_classes").fill("ten")
    expect(error_of(form, "teacher.num_classes")).to_contain_text("must be a whole number")
    field(form, "teacher.num_classes").fill("10")
    expect(error_of(form, "teacher.num_classes")).to_be_hidden()
    field(form, "teacher.arch").fill("resnet21")
    expect(error_of(form, "teacher.arch")).to_contain_text("resnet21")
    field(form, "teacher.checkpoint").fill("nowhere.safetensors")
    field(form, "teacher.arch").fill("resnet20")
    field(form, "student.arch").fill("resnet8")
    expect(error_of(form, "teacher.checkpoint")).to_contain_text("nowhere.safetensors")


def test_submitting_too_early_leads_to_the_first_missing_field(open_page: OpenPage, service: Service) -> None:
    form = open_page(service, "/ui/new", expected=[*INCOMPLETE, ("/jobs", "422")])
    form.get_by_role("button", name="Start job").click()
    expect(field(form, "teacher.checkpoint")).to_be_focused()
    expect(error_of(form, "student.arch")).to_have_text("This field is required.")
    field(form, "teacher.checkpoint").fill("digits/teacher.safetensors")
    expect(error_of(form, "teacher.checkpoint")).to_be_hidden()


def test_the_example_shows_its_estimate_and_the_same_job_as_yaml(form: Page) -> None:
    form.get_by_role("link", name="Start from the digits example").click()
    expect(form.locator("#form-state")).to_have_text("Ready to start.")
    expect(form.locator("#estimate")).to_contain_text("6,400 in 50 batches")
    form.get_by_text("The same job as YAML").click()
    written = yaml.safe_load(form.locator("#yaml").inner_text())
    assert written == yaml.safe_load((DIGITS / "job.yaml").read_text())


def test_presets_and_methods_change_what_empty_fields_stand_for(form: Page) -> None:
    form.locator("[data-section=synthesis] summary").click()
    steps = field(form, "synthesis.steps")
    expect(steps).to_have_attribute("placeholder", "5")
    field(form, "synthesis.preset").select_option("fast-10")
    expect(steps).to_have_attribute("placeholder", "10")
    expect(field(form, "synthesis.jitter")).to_be_hidden()
    field(form, "synthesis.preset").select_option("deepinversion-2k")
    expect(steps).to_have_attribute("placeholder", "2000")
    expect(field(form, "synthesis.jitter")).to_be_visible()
    expect(field(form, "synthesis.latent_dim")).to_be_hidden()


def test_an_upload_fills_in_what_the_file_tells(form: Page, service: Service) -> None:
    form.locator("[data-section=teacher] input[type=file]").set_input_files(DIGITS / "teacher.safetensors")
    expect(form.locator("[data-section=teacher] [data-upload-text]")).to_contain_text("looks like resnet20")
    # The newest first: other tests upload to the same service.
    model = service.client.get("/models").json()["data"][0]
    expect(field(form, "teacher.checkpoint")).to_have_value(model["checkpoint"])
    expect(field(form, "teacher.arch")).to_have_value("resnet20")
    expect(field(form, "teacher.num_classes")).to_have_value("10")
    expect(field(form, "teacher.input.channels")).to_have_value("1")
    service.client.delete(f"/models/{model['id']}")


def test_an_upload_that_is_no_checkpoint_is_refused_with_the_reason(open_page: OpenPage, service: Service) -> None:
    form = open_page(service, "/ui/new", expected=[*INCOMPLETE, ("/models", "422")])
    upload = form.locator("[data-section=teacher] input[type=file]")
    upload.set_input_files({"name": "notes.txt", "mimeType": "text/plain", "buffer": b"not weights"})
    expect(form.locator("[data-section=teacher] [data-upload-text]")).to_contain_text("is no checkpoint")
    expect(field(form, "teacher.checkpoint")).to_have_value("")


def test_a_dataset_alone_needs_no_student(form: Page) -> None:
    form.get_by_role("link", name="Start from the digits example").click()
    form.get_by_role("radio", name=re.compile("Dataset only")).check()
    expect(form.locator("[data-section=student]")).to_be_hidden()
    expect(form.locator("#form-state")).to_have_text("Ready to start.")
    expect(form.locator("#estimate")).not_to_contain_text("Training")
    form.get_by_role("radio", name=re.compile("existing dataset")).check()
    expect(field(form, "synthesis.num_images")).to_be_hidden()
    field(form, "shards").fill("digits/held-out.tar")
    expect(form.locator("#form-state")).to_have_text("Ready to start.")
    expect(form.locator("#estimate")).to_contain_text("1,000 steps")


def test_a_job_from_another_job_is_the_same_job(open_page: OpenPage, service: Service, finished_job: str) -> None:
    form = open_page(service, f"/ui/new?from={finished_job}")
    expect(form.locator("#form-state")).to_have_text("Ready to start.")
    written = yaml.safe_load(form.locator("#yaml").text_content() or "")
    assert JobSpec.model_validate(written) == JobSpec.model_validate(small_digits("finished"))


def test_the_keyboard_alone_submits_a_job_once(open_page: OpenPage, service: Service, finished_job: str) -> None:
    form = open_page(service, f"/ui/new?from={finished_job}")
    field(form, "name").focus()
    form.keyboard.press("Control+A")
    form.keyboard.type("typed")
    form.keyboard.press("Enter")
    form.keyboard.press("Enter")
    form.wait_for_url("**/ui/jobs/job-*")
    [job] = service.client.get("/jobs", params={"name": "typed"}).json()["data"]
    assert form.url.endswith(job["id"])
    service.wait_until_final(job["id"])


def test_the_form_fits_a_phone(open_page: OpenPage, service: Service) -> None:
    form = open_page(service, "/ui/new?example=digits", viewport={"width": 360, "height": 740})
    expect(form.locator("#form-state")).to_have_text("Ready to start.")
    for summary in form.locator("details > summary").all():
        summary.click()
    assert form.evaluate("document.documentElement.scrollWidth") <= 360


def test_a_vision_transformer_gets_a_preset_of_its_own(form: Page) -> None:
    field(form, "teacher.num_classes").fill("10")
    field(form, "teacher.checkpoint").fill("digits/teacher.safetensors")
    field(form, "student.arch").fill("resnet8")
    field(form, "teacher.arch").fill("resnet20")
    default = field(form, "synthesis.preset").locator("option").first
    expect(default).to_have_text("Default (fast-5)")
    field(form, "teacher.arch").fill("timm:deit_tiny_patch16_224")
    expect(default).to_have_text("Default (psaq-vit)")
    expect(field(form, "synthesis.attention")).to_have_attribute("placeholder", re.compile("^1"))
