"""What the whole package uses: atomic files, seeding, processes, progress, paths."""
