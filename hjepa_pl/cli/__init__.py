"""From the command line to a run and its exit status."""
