"""The same jobs in fgd, Keras and Lightning, whose lines of code `benchmarks.lines` counts."""
