"""Reports: HTML pages and the files of an evaluation."""
