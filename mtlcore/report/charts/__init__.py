"""Line charts as SVG: on a page, and as files of their own."""
