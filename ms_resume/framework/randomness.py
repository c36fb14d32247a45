"""MindSpore's random state, as far as it can be read and set back.

On a CPU that is what PyNative operators draw from; operators inside `ms.jit` and `nn.Dropout` keep theirs in kernels
(tried on 2.7.1 to 2.10.0). The generator state is kept for Ascend, where the mint operators use it.
"""

from __future__ import annotations

import sys
from typing import Any


def read() -> dict[str, Any]:
    import mindspore

    module = _seed_module()
    kernels = [[kernel, seed, count] for (kernel, seed), count in module._KERNEL_SEED.items()]
    return {
        "global_seed": module._GLOBAL_SEED,
        "kernel_seeds": kernels,
        "generator": mindspore.get_rng_state().asnumpy().copy(),
    }


def write(state: dict[str, Any]) -> None:
    import mindspore

    module = _seed_module()
    module._GLOBAL_SEED = state["global_seed"]
    module._KERNEL_SEED.clear()
    module._KERNEL_SEED.update({(kernel, seed): count for kernel, seed, count in state["kernel_seeds"]})
    mindspore.set_rng_state(mindspore.Tensor(state["generator"]))


def _seed_module() -> Any:
    import mindspore.common.seed  # noqa: F401  # the attribute of that name is the function `seed`

    return sys.modules["mindspore.common.seed"]
