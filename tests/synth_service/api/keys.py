"""Two API keys of a deployment and how they are shown."""

from shared.settings import Settings

KEYS = {"alice": "alices-key-0123456789", "bob": "bobs-key-0123456789"}


def with_keys(settings: Settings, **changes: object) -> Settings:
    """The same settings with the keys of Alice and Bob."""
    listed = ",".join(f"{name}:{key}" for name, key in KEYS.items())
    given = {**settings.model_dump(), "redis_url": settings.redis_url, "api_keys": listed, **changes}
    return Settings(**given)


def bearer(name: str) -> dict[str, str]:
    """The headers that show somebody's key."""
    return {"Authorization": f"Bearer {KEYS[name]}"}
