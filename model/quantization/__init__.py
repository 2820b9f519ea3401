"""Weights as int8, int4 and float8."""
