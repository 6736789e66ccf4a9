"""Synthetic chest CT series with known lesions, written as DICOM."""
