"""The secret that signs sign-ins: made once, shared by all API processes, as lasting as the jobs are."""

import secrets

from shared.broker import keys
from shared.broker.connection import Client


def session_secret(client: Client) -> str:
    """The secret, made now if there is none, in one round trip. Deleting it ends every session."""
    with client.pipeline(transaction=True) as pipeline:
        pipeline.set(keys.SESSION_SECRET, secrets.token_hex(32), nx=True)
        pipeline.get(keys.SESSION_SECRET)
        secret: str = pipeline.execute()[1]
        return secret
