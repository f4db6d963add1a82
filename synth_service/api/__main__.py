"""``python -m synth_service.api``: serves the API until SIGTERM or SIGINT."""

import sys

from shared.extras import exit_unless_installed

if __name__ == "__main__":
    exit_unless_installed("the API", ["api"])
    from synth_service.api.server import main

    sys.exit(main())
