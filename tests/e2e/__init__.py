"""The chart and the image on a real cluster; README.md here says how to run it."""
