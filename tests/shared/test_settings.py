import base64
import hashlib

import pytest
from pydantic import ValidationError

from shared.settings import Settings, check_exposure, webhook_key


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("REDIS_URL", *(f"DFKD_{field.upper()}" for field in Settings.model_fields)):
        monkeypatch.delenv(name, raising=False)


def test_nothing_needs_to_be_set() -> None:
    settings = Settings()
    assert settings.redis_url is None
    assert settings.host == "127.0.0.1"
    assert settings.allowed_factories == ()


def test_settings_are_read_from_variables_with_the_prefix(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DFKD_PORT", "9000")
    monkeypatch.setenv("DFKD_STORAGE", "s3://bucket/prefix")
    monkeypatch.setenv("PORT", "1")
    assert (Settings().port, Settings().storage) == (9000, "s3://bucket/prefix")


def test_redis_url_is_read_under_both_names_and_the_own_one_wins(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REDIS_URL", "redis://common")
    assert Settings().redis_url == "redis://common"
    monkeypatch.setenv("DFKD_REDIS_URL", "redis://own")
    assert Settings().redis_url == "redis://own"
    assert Settings(redis_url="redis://argument").redis_url == "redis://argument"


@pytest.mark.parametrize(("value", "packages"), [("a", ("a",)), ("a.b, c ,", ("a.b", "c")), ("", ()), (" , ", ())])
def test_packages_are_separated_by_commas(
    monkeypatch: pytest.MonkeyPatch, value: str, packages: tuple[str, ...]
) -> None:
    monkeypatch.setenv("DFKD_ALLOWED_FACTORIES", value)
    assert Settings().allowed_factories == packages


@pytest.mark.parametrize(
    ("name", "value"),
    [("PORT", "70000"), ("PORT", "x"), ("LEASE_SECONDS", "0"), ("LOG_LEVEL", "loud"), ("MAX_ATTEMPTS", "0")],
)
def test_a_setting_that_cannot_work_is_refused_by_name(monkeypatch: pytest.MonkeyPatch, name: str, value: str) -> None:
    monkeypatch.setenv(f"DFKD_{name}", value)
    with pytest.raises(ValidationError, match=name.lower()):
        Settings()


def test_settings_do_not_change() -> None:
    with pytest.raises(ValidationError, match="frozen"):
        Settings().port = 1  # type: ignore[misc]


SECRET = "swordfish-0123456789"
WEBHOOK_SECRET = f"whsec_{base64.b64encode(bytes(range(32))).decode()}"


def test_secrets_do_not_show() -> None:
    settings = Settings(redis_url=f"redis://:{SECRET}@host", api_keys=f"me:{SECRET}", webhook_secret=WEBHOOK_SECRET)
    assert WEBHOOK_SECRET not in repr(settings)
    assert SECRET not in repr(settings)
    assert SECRET not in repr(settings.api_keys)
    assert hashlib.sha256(SECRET.encode()).hexdigest() not in repr(settings)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("API_KEYS", SECRET),
        ("API_KEYS", f"me:sha256:{SECRET}"),
        ("REDIS_URL", f"redis://:{SECRET}/0@host:1"),
        ("REDIS_URL", f"redis://host:{SECRET}"),
        ("STORAGE", f"s3://id:{SECRET}@bucket/prefix"),
        ("WEBHOOK_SECRET", SECRET),
        ("WEBHOOK_SECRET", f"whsec_{SECRET}"),
    ],
)
def test_a_refused_setting_does_not_repeat_the_secret_in_it(
    monkeypatch: pytest.MonkeyPatch, name: str, value: str
) -> None:
    monkeypatch.setenv(f"DFKD_{name}", value)
    with pytest.raises(ValidationError, match=f"(?i){name}") as refused:
        Settings()
    assert SECRET not in str(refused.value)
    assert SECRET not in str([error["msg"] for error in refused.value.errors()])


@pytest.mark.parametrize(
    ("host", "is_refused"),
    [
        ("127.0.0.1", False),
        ("127.8.0.1", False),
        ("::1", False),
        ("localhost", False),
        ("0.0.0.0", True),
        ("::", True),
        ("", True),
        ("192.168.1.2", True),
        ("localhost.example.org", True),
    ],
)
def test_without_a_key_only_loopback_may_be_listened_on(host: str, is_refused: bool) -> None:
    if is_refused:
        with pytest.raises(ValueError, match="DFKD_API_KEYS"):
            check_exposure(Settings(host=host))
    else:
        check_exposure(Settings(host=host))
    check_exposure(Settings(host=host, allow_unauthenticated=True))
    check_exposure(Settings(api_keys=f"me:{SECRET}"), host)


def test_webhooks_need_hosts_and_a_secret(monkeypatch: pytest.MonkeyPatch) -> None:
    assert webhook_key(Settings()) is None
    assert webhook_key(Settings(webhook_secret=WEBHOOK_SECRET)) is None
    monkeypatch.setenv("DFKD_WEBHOOK_HOSTS", "Hooks.Example.org, 127.0.0.1:8443")
    settings = Settings()  # workers, who share the variables, have no use for the secret
    assert settings.webhook_hosts == ("hooks.example.org", "127.0.0.1:8443")
    with pytest.raises(ValueError, match=r"DFKD_WEBHOOK_SECRET is not.*openssl rand -base64 32"):
        webhook_key(settings)
    monkeypatch.setenv("DFKD_WEBHOOK_SECRET", WEBHOOK_SECRET)
    assert webhook_key(Settings()) == bytes(range(32))


@pytest.mark.parametrize("bytes_in_it", [0, 23, 65])
def test_a_webhook_secret_has_the_length_of_the_scheme(bytes_in_it: int) -> None:
    with pytest.raises(ValidationError, match=r"24 to 64 bytes.*openssl rand"):
        Settings(webhook_secret=f"whsec_{base64.b64encode(bytes(bytes_in_it)).decode()}")


@pytest.mark.parametrize("host", ["*", "https://example.org", "example.org/hook", "example.org:x"])
def test_a_webhook_host_is_a_host_and_nothing_else(host: str) -> None:
    with pytest.raises(ValidationError, match="write example"):
        Settings(webhook_hosts=f"good.example.org,{host}")


def test_every_setting_is_described() -> None:
    assert [name for name, field in Settings.model_fields.items() if not field.description] == []
