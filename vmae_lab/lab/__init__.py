"""The workbook: what a notebook talks to."""
