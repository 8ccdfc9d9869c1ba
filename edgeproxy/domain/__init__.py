"""Pure rules: keys, limits, reservations, usage. No I/O, no clock, no framework; time and bytes are arguments."""
