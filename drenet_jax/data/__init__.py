"""Persons and batches: cohort, split, records, and the input pipeline."""
