"""Pages for people who look: made on the server, usable without a script, and protected as a browser needs it."""
