import pytest
from pydantic import ValidationError

from shared.settings import Settings


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
