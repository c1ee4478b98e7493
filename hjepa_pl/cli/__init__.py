"""Command line of a run: arguments, config, checks, checkpoints and exit status."""
