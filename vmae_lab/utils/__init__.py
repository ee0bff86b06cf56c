"""Shared utilities: atomic files, errors, paths, processes, progress bars, seeding."""
