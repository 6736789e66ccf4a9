"""The networks, in Flax Linen, NHWC."""
