"""The entry point of ``dfkd``: in one line what to install, where the command line's own packages are missing."""

from shared.extras import exit_unless_installed


def main() -> None:
    """Runs the command line."""
    try:
        from synth_service.cli import main as run

        run()
    except ModuleNotFoundError:  # some come to light only when a command is imported
        exit_unless_installed("dfkd", ["cli"])
        raise
