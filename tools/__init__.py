"""Publish and check the results, and measure the speed."""
