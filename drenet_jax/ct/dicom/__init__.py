"""DICOM CT: headers, pixels, and which slices form one stack."""
