"""Settings: the environment in, checked values out."""
