"""Training state beside the tensors: each piece has a name, `state()`, and `restore()` (`state.Component`)."""
