"""One run under the real msrun, disturbed in every way that a supervisor must survive, and its undisturbed twin."""
