"""The entry point of ``dfkd``: in one line what to install, where the command line's own packages are missing."""

from shared.extras import exit_unless_installed


def main() -> None:
    """Runs the command line."""
    try:
        from synth_service.cli import main as run
    except ModuleNotFoundError:
        exit_unless_installed("dfkd", ["cli"])
        raise
    run()
