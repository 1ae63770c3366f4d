"""What a guarded training consists of: tagged samples, their sampler, the loss, when to stop."""
