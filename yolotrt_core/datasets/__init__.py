"""Labelled data sets in YOLO and COCO form, and class names."""
