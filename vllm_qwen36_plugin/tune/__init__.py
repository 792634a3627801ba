"""Instruments that measure this machine, and write what serving then uses."""
