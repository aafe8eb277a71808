"""One script per performance claim; each prints a ratio to a named baseline of the same run."""
