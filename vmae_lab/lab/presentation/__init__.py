"""From a plan and its results to what a notebook shows: tables for people, series for figures, words that the numbers say.

`common` holds what every notebook shows, the others what one of them does.
"""
