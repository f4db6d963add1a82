"""The distiller process: ``python -m distiller.worker``."""

from shared.extras import exit_unless_installed
from shared.jobs import Role


def main() -> None:
    """Distils one job after another until a signal arrives."""
    exit_unless_installed("a distiller", ["worker"])
    from distiller.attempt import distil
    from shared.worker.process import run_worker

    run_worker(Role.DISTILLATION, distil)


if __name__ == "__main__":
    main()
