"""`hjepa export`: the weights of a run in the formats of other programs, each checked by numbers."""
