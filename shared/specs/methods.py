"""Every inversion method that a job may name: ours, and those that other packages bring.

A package names its spec class in an entry point ``fast_dfkd.inverters``; that class says where its inverter is, so
nothing here, and nothing in the API, imports torch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, Final, Union

from pydantic import Field

from shared.plugins import plugins
from shared.specs.synthesis import (
    DeepInversionSynthesis,
    DFADSynthesis,
    FastMetaSynthesis,
    FastSynthesis,
    RecoverSynthesis,
    SynthesisBase,
)

OWN_METHODS: Final[tuple[type[SynthesisBase], ...]] = (
    FastMetaSynthesis,
    FastSynthesis,
    DeepInversionSynthesis,
    RecoverSynthesis,
    DFADSynthesis,
)


def _methods() -> dict[str, type[SynthesisBase]]:
    found = {method_of(spec): spec for spec in OWN_METHODS}
    for name, entry in plugins("fast_dfkd.inverters").items():
        spec = entry.load()
        if not (isinstance(spec, type) and issubclass(spec, SynthesisBase) and spec.inverter):
            raise TypeError(f"the entry point `{name}` leads to {entry.value}: no SynthesisBase with an inverter")
        if name in found or method_of(spec) != name:
            raise TypeError(f"the entry point `{name}` leads to {entry.value}, whose method is `{method_of(spec)}`")
        found[name] = spec
    return found


def method_of(spec: type[SynthesisBase]) -> str:
    """The name of the method whose settings a class holds."""
    return str(spec.model_fields["method"].default)


METHODS: Final = _methods()
"""The class of every method's settings."""

SYNTHESIS_METHODS: Final = tuple(METHODS)

if TYPE_CHECKING:
    SynthesisSpec = Annotated[
        FastMetaSynthesis | FastSynthesis | DeepInversionSynthesis | RecoverSynthesis | DFADSynthesis,
        Field(discriminator="method"),
    ]
else:
    _AnySpec: Any = Union[tuple(METHODS.values())]  # noqa: UP007
    SynthesisSpec = Annotated[_AnySpec, Field(discriminator="method")]
