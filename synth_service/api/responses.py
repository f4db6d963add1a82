"""How routes describe their answers in the OpenAPI document, beside errors."""

from typing import Any

Responses = dict[int | str, dict[str, Any]]

NOT_MODIFIED: Responses = {304: {"description": "Unchanged since the `ETag` of the client."}}
PARTIAL: Responses = {206: {"description": "The range that was asked for."}}


def binary(media_type: str, description: str) -> Responses:
    """A file as the answer."""
    return {
        200: {"description": description, "content": {media_type: {"schema": {"type": "string", "format": "binary"}}}}
    }
