"""Pictures in, detections out: the detector, and what `ssd detect` leaves in a folder."""
