"""What of `mindspore.common` is asked for."""
