"""`hjepa sweep`: one config over seeds and a small grid of keys, and a table of the results."""
