"""`hjepa eval`: judge an encoder on labeled datasets, beside its baselines."""
