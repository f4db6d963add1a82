"""Addresses that a job may name, and hosts that a deployment sends to."""

import pytest
from pydantic import ValidationError

from shared.specs.webhooks import is_allowed, is_receiver, receiver_of
from tests.specs import small_job


@pytest.mark.parametrize(
    ("url", "receiver"),
    [
        ("https://example.org", "example.org:443"),
        ("HTTPS://Example.ORG/Hook?token=A", "example.org:443"),
        ("http://example.org?token=a", "example.org:80"),
        ("http://127.0.0.1:8080/a@b", "127.0.0.1:8080"),
        ("https://[2001:DB8::1]:8443/", "[2001:db8::1]:8443"),
        ("https://a_b.internal:0443/", "a_b.internal:443"),
    ],
)
def test_an_address_says_which_host_it_means(url: str, receiver: str) -> None:
    assert small_job(webhook=url).webhook == url
    assert receiver_of(url) == receiver


@pytest.mark.parametrize(
    ("url", "remedy"),
    [
        ("ftp://example.org/", "https://"),
        ("example.org/hook", "https://"),
        ("", "https://"),
        ("https://", "look like"),
        ("https:///hook", "look like"),
        ("https://me:swordfish@example.org/", "no user or password"),
        ("https://allowed.org@evil.org/", "no user or password"),
        ("https://example.org/#part", "no fragment"),
        ("https://evil.org#@allowed.org/", "no fragment"),
        ("https://evil.org\\@allowed.org/", "look like"),
        ("https://allowed.org\\.evil.org/", "look like"),
        ("https://exämple.org/", "look like"),
        ("https://example.org/ä", "look like"),
        ("https://example.org/a b", "look like"),
        ("https://example.org/\n", "look like"),
        ("https://example.org\t.evil.org/", "look like"),
        ("https://%65xample.org/", "look like"),
        ("https://[::1", "look like"),
        ("https://example.org:", "look like"),
        ("https://example.org:x/", "look like"),
        ("https://example.org:0/", "from 1 to 65535; it is 0"),
        ("https://example.org:65536/", "from 1 to 65535; it is 65536"),
        ("https://example.org/" + "a" * 2000, "at most 2000"),
    ],
)
def test_an_address_that_could_be_misread_is_refused(url: str, remedy: str) -> None:
    with pytest.raises(ValidationError, match=remedy) as refused:
        small_job(webhook=url)
    (error,) = refused.value.errors()
    assert error["loc"] == ("webhook",)
    assert "swordfish" not in error["msg"]


@pytest.mark.parametrize(
    ("url", "allowed", "is_sent_to"),
    [
        ("https://example.org/hook", ("example.org",), True),
        ("http://example.org/hook", ("example.org",), True),
        ("https://EXAMPLE.org:443/hook", ("example.org",), True),
        ("https://example.org/hook", ("example.org:443",), True),
        ("https://example.org:8443/hook", ("other.org", "example.org:8443"), True),
        ("https://[::1]:8443/hook", ("[::1]:8443",), True),
        ("https://[::1]/hook", ("[::1]",), True),
        ("https://example.org:6379/hook", ("example.org",), False),
        ("http://example.org:443/hook", ("example.org",), False),
        ("https://example.org/hook", ("example.org:8443",), False),
        ("http://example.org/hook", ("example.org:443",), False),
        ("https://sub.example.org/hook", ("example.org",), False),
        ("https://example.org./hook", ("example.org",), False),
        ("https://example.org.evil.org/", ("example.org",), False),
        ("https://2130706433/", ("127.0.0.1",), False),
        ("https://example.org/hook", (), False),
    ],
)
def test_a_host_is_allowed_on_its_port_alone(url: str, allowed: tuple[str, ...], is_sent_to: bool) -> None:
    assert is_allowed(url, allowed) is is_sent_to


def test_an_address_that_no_job_may_name_has_no_receiver() -> None:
    with pytest.raises(ValueError, match="no address"):
        receiver_of("file:///etc/passwd")


@pytest.mark.parametrize(
    "text", ["*", "*.example.org", "https://example.org", "example.org/hook", "a b", "example.org:"]
)
def test_what_is_no_host_cannot_be_listed(text: str) -> None:
    assert not is_receiver(text)
