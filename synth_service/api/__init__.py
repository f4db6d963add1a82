"""The HTTP API. ``app.create_app`` builds it; ``python -m synth_service.api`` serves it. Never imports torch."""
