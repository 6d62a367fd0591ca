"""What a student need not read to follow a training: fetching, safe storage, tables across runs."""
