"""The report of a scaling study: tables, plots and pages, made of a StudyView. Torch-free."""
