"""What does each normalization do, and what is each choice worth? For readers who want evidence: a question a file,
with what theory expects, the runs, the picture and the finding. `python -m studies.NAME` does what `make study-NAME`
does."""
