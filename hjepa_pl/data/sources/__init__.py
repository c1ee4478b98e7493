"""Sources of images: datasets by name, folders, tar shards, and the decoding of files."""
