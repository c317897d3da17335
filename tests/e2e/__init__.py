"""The chart and the image on a real cluster; see README.md in this folder."""
