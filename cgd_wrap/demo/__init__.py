"""A demo of the whole defence, on drawn pictures, with a small network and a tiny CLIP."""
