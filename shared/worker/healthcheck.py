"""``python -m shared.worker.healthcheck api|worker``: does this container do its work? Exits with 0 or 1.

The API must call itself ready. A worker must have told Redis of itself lately: that takes a living process, a server
that answers and a password that is right, and it goes on while a job runs. Nothing heavy is imported, since an
orchestrator asks every few seconds.
"""

import os
import socket
import sys
import time
import urllib.error
import urllib.request

API_TIMEOUT_SECONDS = 4.0
REDIS_TIMEOUT_SECONDS = 3.0

FRESH_SECONDS = 30.0
"""Workers tell of themselves every few seconds, busy or idle; a slow disk may make them late."""


def complaint_about_api(url: str) -> str | None:
    """What is wrong with the API of this address, in one line; None when it is ready."""
    # Not through a proxy that the environment may name: the API is in the same container.
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(f"{url}/readyz", timeout=API_TIMEOUT_SECONDS):
            return None
    except urllib.error.HTTPError as error:
        return f"not ready: {error.read(2000).decode(errors='replace')}"
    except OSError as error:
        return f"the API does not answer: {error}"


def complaint_about_worker(redis_url: str | None, host: str, *, now: float | None = None) -> str | None:
    """What is wrong with the worker of this host, in one line; None when Redis has heard of it lately.

    Args:
        redis_url: where workers tell of themselves.
        host: name of the machine or container that the worker runs on.
        now: Unix time, if not the present.
    """
    import redis

    from shared.broker import Broker

    if redis_url is None:
        return "REDIS_URL is not set"
    broker = Broker(redis_url, retries=0, timeout_seconds=REDIS_TIMEOUT_SECONDS)
    try:
        known = broker.workers.all()
    except redis.RedisError as error:
        return f"Redis cannot be used: {error}"
    finally:
        broker.close()
    heard = [float(each["at"]) for each in known if each["name"] == f"{each['role']}-{host}-{each['pid']}"]
    if not heard:
        return f"Redis knows of no worker on {host}"
    silence = (time.time() if now is None else now) - max(heard)
    return f"the worker has been silent for {silence:.0f} s" if silence > FRESH_SECONDS else None


def main() -> int:
    """The command."""
    match sys.argv[1:]:
        case ["api"]:
            complaint = complaint_about_api(f"http://127.0.0.1:{os.environ.get('DFKD_PORT') or 8000}")
        case ["worker"]:
            from shared.settings import Settings

            complaint = complaint_about_worker(Settings().redis_url, socket.gethostname())
        case _:
            complaint = "usage: python -m shared.worker.healthcheck api|worker"
    if complaint:
        print(complaint, file=sys.stderr)  # noqa: T201 -- what `docker inspect` shows
    return 1 if complaint else 0


if __name__ == "__main__":
    sys.exit(main())
