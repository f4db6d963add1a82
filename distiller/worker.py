"""The distiller process: ``python -m distiller.worker``."""

from distiller.attempt import distil
from shared.jobs import Role
from shared.worker.process import run_worker


def main() -> None:
    """Distils one job after another until a signal arrives."""
    run_worker(Role.DISTILLATION, distil)


if __name__ == "__main__":
    main()
