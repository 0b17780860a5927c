"""The benchmark harness: cases, measurement, records, comparison, report and the regression gate. Trains nothing."""
