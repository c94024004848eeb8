"""Images, videos and cameras as sources of frames."""
