"""What a variant's name tells: its world, and which launch makes it."""


def world_of(variant: str) -> int:
    """The number of ranks: 4 of `fsdp2_w4`, 1 of `ws1_fsdp1`."""
    return 1 if variant.startswith("ws1_") else int(variant.rpartition("_w")[2])


def group_of(variant: str) -> str:
    """The launch that makes a variant: one a world, and one for the many architectures."""
    if variant.startswith("dcp_"):
        return f"dcp_w{world_of(variant)}"
    return f"arch_w{world_of(variant)}" if variant.startswith("arch_") else f"w{world_of(variant)}"
