"""The package gives the names on, as the original does."""

from mindrlhf.utils.utils import (
    ensure_total_ckpt_is_less_than_limit,
    get_checkpoint_name,
    load_param_to_net,
    record_last_ckpt_to_json,
)

__all__ = [
    "ensure_total_ckpt_is_less_than_limit",
    "get_checkpoint_name",
    "load_param_to_net",
    "record_last_ckpt_to_json",
]
