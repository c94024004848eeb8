"""Accuracy of engines: COCO mAP, agreement, and the accuracy gate."""
