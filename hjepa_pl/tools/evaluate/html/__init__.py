"""report.html: the results of an evaluation as one page that needs no network and no script."""
