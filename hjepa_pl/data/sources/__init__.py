"""Where images come from: datasets, folders, shards, and how a file is decoded."""
