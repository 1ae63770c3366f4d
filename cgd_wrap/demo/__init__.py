"""What the demo runs on: drawn pictures, a small network and a tiny CLIP."""
