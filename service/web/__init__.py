"""Web pages: rendered on the server, usable without scripts, and protected against cross-site requests."""
