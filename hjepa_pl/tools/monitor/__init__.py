"""`hjepa monitor`: a dashboard of runs in the terminal."""
