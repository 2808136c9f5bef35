"""The program around a run: progress, evaluation, logs, interrupts, streams of batches."""
