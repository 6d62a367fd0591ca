"""Studies: one question per file, with what theory expects, the runs, the figure and the finding."""
