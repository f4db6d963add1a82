"""Why a file cannot be loaded as weights, and what to do about it."""

from __future__ import annotations


class UnsafePickle(ValueError):
    """Loading the file would run code, or do what weights need not."""

    remedy: str | None = None
    """What helps in place of the usual advice."""


class UnreadableFile(ValueError):
    """It is no checkpoint, or it is damaged."""

    remedy: str | None = None
    """What helps in place of the usual advice."""


class ScriptedFile(UnsafePickle):
    """A network of TorchScript."""

    remedy = "Take the weights out of it: torch.save(torch.jit.load(path).state_dict(), 'weights.pt')"

    def __init__(self) -> None:
        super().__init__("it is a TorchScript archive, which holds code")


class ExportedFile(UnreadableFile):
    """A program of torch.export."""

    remedy = "Take the weights out of it: torch.save(dict(torch.export.load(path).state_dict), 'weights.pt')"

    def __init__(self) -> None:
        super().__init__("it is a program of torch.export, whose layers can be neither observed nor trained")
