"""Report pages, their folders, and the index of all reports."""
