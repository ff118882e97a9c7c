"""Clips of anybody's own weights, dense and sparse from one seed, compared one by one."""
