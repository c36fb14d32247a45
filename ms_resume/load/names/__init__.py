"""Which name of a file is which of a net: one fate for each, why one does not fit, and the mapping that mends it."""
