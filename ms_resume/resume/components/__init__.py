"""Pieces of training state beside the tensors: each has a name, `state()`, and `restore()` (`ms_resume.state.Component`)."""
