"""Where MindSpore keeps what its kernels are seeded with."""

_GLOBAL_SEED: int | None = None
_KERNEL_SEED: dict[tuple[str, int], int] = {}
