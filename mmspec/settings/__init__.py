"""Settings: found, composed, checked, and built into objects."""
