"""The S3 driver, with an end to every request, and with the errors of a deletion of many objects.

Its own time-outs cover connecting and reading. One that sends a body has none until the whole body is written, so a
store that stops to take it (a dead peer, a full load balancer) would hold the sender for ever.
"""

from __future__ import annotations

import asyncio
from typing import Any, Final

import s3fs

from shared.storage.outages import StorageUnavailable

REQUEST_SECONDS: Final = 75.0
"""Of a request with all its tries, besides its body: more than what the driver's own time-outs add up to."""

SLOWEST_BYTES_PER_SECOND: Final = 64 * 1024
"""At which a body may still be sent; below it the store counts as one that hangs."""


class BoundedS3(s3fs.S3FileSystem):  # type: ignore[misc]  # the driver has no types
    """Raises ``StorageUnavailable`` in place of waiting for ever, and of leaving objects that were to be deleted."""

    cachable = False
    """Each storage has its own, with the endpoint and the credentials that the environment names by then."""

    async def _call_s3(self, method: str, *settings: Any, **arguments: Any) -> Any:
        body = arguments.get("Body")
        size = len(body) if isinstance(body, bytes | bytearray | memoryview) else 0
        seconds = REQUEST_SECONDS + size / SLOWEST_BYTES_PER_SECOND
        try:
            answer = await asyncio.wait_for(super()._call_s3(method, *settings, **arguments), seconds)
        except TimeoutError as error:
            address = f"s3://{arguments.get('Bucket', '')}/{arguments.get('Key', '')}"
            raise StorageUnavailable(f"{address}: no answer to {method} within {seconds:.0f} s") from error
        if method == "delete_objects" and (kept := answer.get("Errors")):
            # Answered with 200, and not looked at by the driver.
            asked = len(arguments["Delete"]["Objects"])
            first = f"{kept[0].get('Key')} for one, {kept[0].get('Code')}"
            raise StorageUnavailable(f"the store kept {len(kept)} of {asked} objects, {first}")
        return answer
