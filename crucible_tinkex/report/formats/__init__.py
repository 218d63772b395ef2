"""The report for papers and for notebooks."""
