"""``python -m synth_service.cli`` is ``dfkd``, where the program itself is not on the path."""

from synth_service.cli import main

if __name__ == "__main__":
    main()
