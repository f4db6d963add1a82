"""Runs a command that ends when its parent does.

``python -m synth_service.local.tethered PARENT SIGNAL NICENESS COMMAND…``.

A supervisor that is killed with SIGKILL cannot tidy up, so the kernel does it: Linux sends a process the
signal it asked for (PR_SET_PDEATHSIG) once the *thread* that started it is gone, which is why supervised
processes are started from the main thread. The request survives ``exec``, so the command replaces this
process and there is nothing in between. A wrapper rather than a ``preexec_fn``, which is unsafe beside
threads. Elsewhere than on Linux the command runs without this net.
"""

import os
import signal
import sys
from collections.abc import Sequence

_PR_SET_PDEATHSIG = 1


def tethered(command: Sequence[str], death_signal: signal.Signals, niceness: int = 0) -> list[str]:
    """``command`` so wrapped that it receives ``death_signal`` when this process is gone.

    ``niceness`` is added to this process's own: with 10 it yields to whatever else wants the core.
    """
    # Without site-packages (-I -S) the wrapper costs 15 ms and no package can interfere.
    return [sys.executable, "-I", "-S", __file__, str(os.getpid()), str(int(death_signal)), str(niceness), *command]


def main() -> None:
    """Asks for the signal and becomes the command."""
    parent, death_signal, niceness, *command = sys.argv[1:]
    if sys.platform == "linux":
        import ctypes

        if ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, int(death_signal)) != 0:
            sys.exit(f"prctl failed: {os.strerror(ctypes.get_errno())}")
        if os.getppid() != int(parent):
            sys.exit("the parent ended before the command could start")
    if hasattr(os, "nice"):
        os.nice(int(niceness))
    try:
        os.execvp(command[0], command)  # noqa: S606 -- replacing this process is the point
    except OSError as error:
        sys.exit(f"{command[0]}: {error.strerror}")


if __name__ == "__main__":
    main()
