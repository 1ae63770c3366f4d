"""Two passes over the data: CLIP's scores and the suspicious model's, on disk."""
