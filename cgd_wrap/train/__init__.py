"""The parts of a guarded training: tagged samples, their sampler, the loss, the stopping rule."""
