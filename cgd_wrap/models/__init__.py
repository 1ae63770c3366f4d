"""The user's classifier and ours: outputs, inputs, weights, predictions."""
