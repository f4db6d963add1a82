"""The distiller process: ``python -m distiller.worker``."""

from shared.extras import exit_unless_installed
from shared.jobs import Role


def main() -> None:
    """Distils one job after another until a signal arrives, alone or as one of several ranks."""
    exit_unless_installed("a distiller", ["worker"])
    from distiller.attempt import distil
    from distiller.launching import is_rank, launch, run_rank
    from shared.settings import Settings
    from shared.worker.process import run_worker

    if is_rank():
        run_rank()
    elif (processes := Settings().distiller_processes) > 1:
        launch(processes)
    else:
        run_worker(Role.DISTILLATION, distil)


if __name__ == "__main__":
    main()
