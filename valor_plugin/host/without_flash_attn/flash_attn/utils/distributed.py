"""What OpenRLHF imports from flash-attn for ring attention, which packs and is refused."""

all_gather = None
