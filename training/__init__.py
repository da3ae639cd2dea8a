"""The workshop: images in, a model folder out. One file per verb or noun."""
