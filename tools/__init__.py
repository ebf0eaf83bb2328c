"""Measuring the codec against others; run from a checkout: `python -m tools.rd_curve`, `python -m tools.side_by_side`."""
