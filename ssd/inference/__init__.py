"""The detector, and the files that `ssd detect` writes."""
