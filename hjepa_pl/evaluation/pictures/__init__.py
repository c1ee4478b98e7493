"""Pictures of what a model sees and computes, drawn with Pillow: sheets of images, maps, curves."""
