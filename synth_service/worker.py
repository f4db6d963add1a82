"""The synthesis process: ``python -m synth_service.worker``."""

from shared.jobs import Role
from shared.worker.process import run_worker
from synth_service.synthesis.attempt import synthesize


def main() -> None:
    """Synthesises for one job after another until a signal arrives."""
    run_worker(Role.SYNTHESIS, synthesize)


if __name__ == "__main__":
    main()
