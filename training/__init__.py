"""The workshop: images in, a model folder out. One file per verb or noun."""

import gc

gc.set_threshold(10_000, 20, 20)  # importing makes half a million objects, and no garbage to look for
