"""The watch over pages, and the policy that it relies on: what must not happen is noticed."""

from __future__ import annotations

import pytest
from playwright.sync_api import Browser

from tests.browser.pages import Watch
from tests.e2e.service import Service
from tests.waiting import wait_until

INLINE_SCRIPT = "document.body.append(Object.assign(document.createElement('script'), {textContent: '1'}))"
INLINE_STYLE = "document.body.setAttribute('style', 'color: red')"


@pytest.mark.parametrize(
    ("misdeed", "complaint"),
    [
        (INLINE_SCRIPT, "Content Security Policy"),
        (INLINE_STYLE, "Content Security Policy"),
        ("fetch('http://elsewhere.invalid/').catch(() => 0)", "elsewhere.invalid"),
        ("new Image().src = 'http://elsewhere.invalid/picture.png'", "elsewhere.invalid"),
        ("setTimeout(() => { throw new Error('uncaught one') })", "uncaught one"),
        ("fetch('/jobs/no-such-job').catch(() => 0)", "422"),
        ("console.error('said')", "said"),
    ],
)
def test_what_must_not_happen_is_noticed(browser: Browser, service: Service, misdeed: str, complaint: str) -> None:
    url = str(service.client.base_url).rstrip("/")
    page = browser.new_page()
    watch = Watch(page, url)
    page.goto(f"{url}/ui/")
    page.evaluate(misdeed)
    # Events of the page arrive while Playwright talks to it.
    wait_until(lambda: page.evaluate("1") and watch.complaints)
    assert complaint in watch.complaints[0]
    page.close()
