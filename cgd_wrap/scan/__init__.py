"""The two passes over the data: logits of CLIP and of the suspicious model, stored on disk."""
