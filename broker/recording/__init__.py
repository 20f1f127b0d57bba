"""The flight recorder: what happens to invocations is written to a stream, and read from there.

In come events as plain values; out go batches on the stream, and from there trees, tables and lines.
"""
