"""Training objectives as plain classes: networks and a batch in, loss terms out. No Lightning."""
