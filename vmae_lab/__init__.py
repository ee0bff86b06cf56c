"""vmae_lab."""
