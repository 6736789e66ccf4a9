"""The DICOM node: receives chest CT studies, scores them once, and sends the results back."""
