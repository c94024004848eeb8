"""Frames to boxes: letterbox, sessions, NMS."""
