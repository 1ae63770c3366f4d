"""Working with classifiers, the user's and the library's own: inputs, outputs, weights."""
