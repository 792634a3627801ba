"""Rules over a checkpoint, one module a topic. Each yields findings from headers and small reads."""
