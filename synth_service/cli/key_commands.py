"""Commands about API keys: one to put into the service's settings, and those of a service that runs."""

from __future__ import annotations

from typing import Annotated

import typer
from rich.markup import escape

from synth_service.cli.options import ApiKey, Json, Url
from synth_service.cli.outcomes import (
    ExitCode,
    connected,
    fail,
    messages,
    output,
    print_json,
    show_listing,
    show_removal,
)
from synth_service.cli.tables import keys_table
from synth_service.client.connection import DEFAULT_URL

SHOWN_ONCE = "that was the key: it is shown once and kept nowhere. Its owner sets DFKD_API_KEY to it."


def key(
    name: Annotated[str, typer.Argument(metavar="NAME", help="Whose key it is; shown in jobs and logs.")],
    scopes: Annotated[
        str | None, typer.Option(metavar="SCOPES", help="What it may do, such as read+submit, metrics or admin.")
    ] = None,
    expires: Annotated[str | None, typer.Option(metavar="DATE", help="Last day on which it counts.")] = None,
    limit: Annotated[
        list[str] | None,
        typer.Option(metavar="WHAT=NUMBER", help="Most queued-jobs, running-jobs or bytes of its owner at a time."),
    ] = None,
    add: Annotated[
        bool, typer.Option("--add", help="Add it to the service that runs. Needs a key with the scope admin.")
    ] = False,
    as_json: Json = False,
    url: Url = DEFAULT_URL,
    api_key: ApiKey = None,
) -> None:
    """Make an API key: the key for its owner, and what the service must know of it.

    With --add the service that runs makes it and takes it at once; otherwise what is printed goes into its settings.
    """
    from shared.api_keys import new_api_key, parse_api_keys

    try:
        options = [f"scopes={scopes}"] if scopes is not None else []
        options += [f"expires={expires}"] if expires is not None else []
        secret, entry = new_api_key(name, [*options, *(limit or [])])
        (described,) = parse_api_keys(entry)
    except ValueError as error:
        fail(str(error), ExitCode.USAGE)
    if add:
        from synth_service.wire import KeyRequest

        wanted = KeyRequest(
            name=name,
            scopes=sorted(described.scopes),
            expires_at=described.expires_at,
            allowance=described.allowance,
        )
        with connected(url, api_key) as client:
            made = client.keys.make(wanted)
        if as_json:
            print_json(made)
            return
        output.print(made.key)
        messages.print(f"{SHOWN_ONCE} It counts from now on; `dfkd keys --revoke {made.fingerprint}` ends it.")
        return
    if as_json:
        print_json({"name": name, "key": secret, "entry": entry})
        return
    output.print(secret)
    messages.print(f"{SHOWN_ONCE} The service gets\n  DFKD_API_KEYS={escape(entry)}\n(several are separated by commas)")


def keys(
    revoke: Annotated[
        str | None, typer.Option(metavar="FINGERPRINT", help="End this key and its sign-ins instead.")
    ] = None,
    as_json: Json = False,
    url: Url = DEFAULT_URL,
    api_key: ApiKey = None,
) -> None:
    """List the API keys that the service accepts now. Needs a key with the scope admin."""
    with connected(url, api_key) as client:
        if revoke is not None:
            client.keys.revoke(revoke)
            show_removal(revoke, "revoked", {"fingerprint": revoke}, as_json=as_json)
            return
        found = client.keys.list()
    none = "no keys: everybody who reaches the service may do everything"
    show_listing(found, keys_table, none, as_json=as_json)
