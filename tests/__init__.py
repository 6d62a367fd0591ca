"""Does it hold? Proofs of support/, studies/ and tools/, on small synthetic data, for whoever changes something there.
Those of common.py and of the scripts are beside them, in test_common.py."""
