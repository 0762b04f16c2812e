"""Measures detections, of a network or of a file, by the metrics of Pascal VOC and COCO, and reports their mistakes."""
