"""Numbers along training runs: which runs there are, what their reports say, as JSON, CSV and SVG."""
