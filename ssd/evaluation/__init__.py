"""How good detections are: the metrics of Pascal VOC and COCO, of a network or of a file."""
