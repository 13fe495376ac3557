"""Repair: corrections in closed form that are folded into the blocks that stay."""
