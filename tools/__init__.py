"""How is what was measured published, and how fast is it? For whoever publishes results: pages, checks and the
benchmark."""
