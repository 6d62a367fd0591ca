"""Tests of support/, studies/ and tools/ on a small synthetic data set; test_common.py is next to common.py."""
