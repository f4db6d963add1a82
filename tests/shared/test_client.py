"""The client's old address."""

import pytest

import synth_service.client


def test_the_old_import_still_works_and_says_what_to_write() -> None:
    with pytest.warns(DeprecationWarning, match=r"from synth_service\.client import Client"):
        from shared.client import Client
    assert Client is synth_service.client.Client


@pytest.mark.parametrize("name", ["NoSuchThing", "__path__"])
def test_other_names_are_missing_there_as_in_any_module(name: str) -> None:
    import shared.client

    with pytest.raises(AttributeError, match=name):
        getattr(shared.client, name)
