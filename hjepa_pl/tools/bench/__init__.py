"""`hjepa bench`: measure a config on this machine."""
