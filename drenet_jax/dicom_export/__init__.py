"""A person's result as DICOM objects for the PACS."""
