"""Settings: environment variables in, validated values out."""
