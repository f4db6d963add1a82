"""Who may call, how often, and what protects a browser that does."""
