"""Losses, the step and the loop."""
