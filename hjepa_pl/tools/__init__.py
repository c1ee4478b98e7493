"""The commands without Lightning: a file each, with a function `run(args)` that returns the exit status."""
