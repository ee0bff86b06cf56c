"""The workbook: recipes, plans, stages, experiments and reports of the notebooks."""
