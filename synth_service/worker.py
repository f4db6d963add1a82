"""The synthesis process: ``python -m synth_service.worker``."""

from shared.extras import exit_unless_installed
from shared.jobs import Role


def main() -> None:
    """Synthesizes for one job after another until a signal arrives."""
    exit_unless_installed("a synthesis worker", ["worker"])
    from shared.worker.process import run_worker
    from synth_service.synthesis.attempt import synthesize

    run_worker(Role.SYNTHESIS, synthesize)


if __name__ == "__main__":
    main()
