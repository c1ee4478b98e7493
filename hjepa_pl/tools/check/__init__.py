"""`hjepa check`: validate a config and report what it amounts to."""
