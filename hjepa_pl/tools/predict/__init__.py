"""`hjepa predict`: the features of any set of images in one file."""
